"""Whether a release goes on, is promoted, or goes back: a pure function of what happened to its mails and to its parent's."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

from scipy.stats import hypergeom

LEAST = 32  # mails of a release before the first look: fewer prove nothing
GROWTH = 1.25  # between two looks the mails grow by a quarter: looks are few, and none comes late
ALPHA = 0.05  # chance that a release which is no worse is ever taken back, over all looks and figures


class Tally(NamedTuple):
    """Counts of one release's mails: ``written`` by the model, ``refused`` by the guard (a template went), ``sent`` with the pool's."""

    written: int = 0
    refused: int = 0
    sent: int = 0
    complained: int = 0
    unsubscribed: int = 0

    @property
    def mails(self) -> int:
        """As many as there is something to say about."""
        return max(self.written, self.sent)


@dataclass(frozen=True, slots=True)
class ReleaseVerdict:
    """``why`` names the figure that worsened, with its counts."""

    action: Literal["wait", "promote", "rollback"]
    why: str = ""


def look(mails: int) -> int:
    """Number of the look that this many mails make due; 0 before the first."""
    return 0 if mails < LEAST else 1 + int(math.log(mails / LEAST, GROWTH))


def worse(bad: int, of: int, bad_before: int, of_before: int) -> float:
    """One-sided p-value that the first share is larger than the second, by Fisher's exact test (exact where counts are small)."""
    if not of or not of_before or bad / of <= bad_before / of_before:
        return 1.0
    return float(hypergeom.sf(bad - 1, of + of_before, bad + bad_before, of))


def decide(now: Tally, before: Tally, number: int, canary: bool, enough: int) -> ReleaseVerdict:
    """At look ``number``: back where any of three shares is worse than the parent's, on where a canary has ``enough`` mails.

    The level is shared out over figures and looks (1 / (k (k + 1)) of it to look k, which sums to 1), so that looking often costs no
    false alarms. Shares of the parent are those of its whole time.
    """
    if number < 1:
        return ReleaseVerdict("wait")
    level = ALPHA / 3 / (number * (number + 1))
    for name, bad, of, bad_before, of_before in (
        ("guard refusals", now.refused, now.written, before.refused, before.written),
        ("complaints", now.complained, now.sent, before.complained, before.sent),
        ("unsubscribes", now.unsubscribed, now.sent, before.unsubscribed, before.sent),
    ):
        p = worse(bad, of, bad_before, of_before)
        if p < level:
            return ReleaseVerdict("rollback", f"{name}: {bad} of {of} mails, before {bad_before} of {of_before} (p {p:.1g})")
    return ReleaseVerdict("promote") if canary and now.mails >= enough else ReleaseVerdict("wait")
