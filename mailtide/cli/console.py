"""Consoles that print values as they are: what came from a shop may look like rich's markup, or name an emoji."""

from __future__ import annotations

from typing import Any

from rich.console import Console


def console(**options: Any) -> Console:
    """As rich's, which reads no markup: style with ``style=`` and ``rich.text.Text``."""
    return Console(markup=False, emoji=False, **options)
