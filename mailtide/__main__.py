"""``python -m mailtide`` is ``mailtide``."""

from mailtide.cli import main

main()
