"""``python -m mailtide`` is ``mailtide``."""

from mailtide.cli.main import main

main()
