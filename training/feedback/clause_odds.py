"""What feedback says of each clause, counted anew from the store of examples: for a refit's file, and between refits for what serves."""

from __future__ import annotations

from collections.abc import Sequence

from models.learning.clause_odds import Styles, odds_of
from models.phrasebook.book import Book
from models.phrasebook.style import styles_of
from schemas.release import Release
from training.feedback.examples import ExampleRow


def odds_from(rows: Sequence[ExampleRow], styles: Styles) -> dict[str, float]:
    """Odds of clauses from all of a cluster's examples."""
    return odds_of(((f"{row.trigger}/{row.tone}", row.clauses.split(), row.reward) for row in rows), styles)


class ClauseOddsTracker:
    """Says when a serving release is to have newer odds: each time that ``every`` examples more have come."""

    def __init__(self, every: int) -> None:
        self.every, self._styles = every, styles_of(Book.load())
        self._told: dict[str, int] = {}  # by cluster: examples at the last look

    def news(self, release: Release, rows: Sequence[ExampleRow]) -> dict[str, float]:
        """Odds to publish; empty where it isn't time yet, nothing changed, or the base alone serves."""
        if not release.artifact or len(rows) - max(self._told.get(release.cluster, 0), release.examples) < self.every:
            return {}
        self._told[release.cluster] = len(rows)
        odds = odds_from(rows, self._styles)
        return odds if odds != release.odds else {}
