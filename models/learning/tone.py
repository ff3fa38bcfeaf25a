"""Which tone a cluster answers to: Thompson sampling over three arms for each cluster, and the chance that each arm is drawn with.

A mail that was clicked, or followed by an order, is a success. The chances are
published, intake draws by them, and so every intent knows the propensity of its
tone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

from river.proba import Beta

from models.phrasebook.book import TONES

DRAWS = 400  # of the posterior, for the chance that an arm is the best
EXPLORE = 0.06  # of mails in a tone drawn uniformly: tastes change, and a refit needs all tones
SUCCESS = frozenset({"clicked", "ordered"})

Counts = dict[str, dict[str, tuple[int, int]]]  # cluster -> tone -> (successes, failures)


class ToneBandit:
    """Learns which tone each cluster answers to; the same answers give the same chances, whatever their order."""

    def __init__(self, counts: Counts | None = None) -> None:
        self.counts: Counts = counts if counts is not None else {}

    @property
    def learned(self) -> int:
        """Answers so far."""
        return sum(good + bad for tones in self.counts.values() for good, bad in tones.values())

    def learn(self, cluster: str, tone: str, success: bool) -> None:
        """What came of one mail."""
        tones = self.counts.setdefault(cluster, {})
        good, bad = tones.get(tone, (0, 0))
        tones[tone] = (good + success, bad + (not success))

    def chances(self, cluster: str) -> dict[str, float]:
        """Chance of each tone; uniform for a cluster that nothing is known of."""
        known = self.counts.get(cluster)
        if not known:
            return dict.fromkeys(TONES, 1 / len(TONES))
        arms = {tone: Beta(1 + known.get(tone, (0, 0))[0], 1 + known.get(tone, (0, 0))[1], seed=n) for n, tone in enumerate(TONES)}
        won = dict.fromkeys(TONES, 0)
        for _ in range(DRAWS):
            drawn = {tone: arm.sample() for tone, arm in arms.items()}
            won[max(drawn, key=drawn.__getitem__)] += 1
        return {tone: EXPLORE / len(TONES) + (1 - EXPLORE) * won[tone] / DRAWS for tone in TONES}


def draw_tone(chances: Mapping[str, float], name: str) -> tuple[str, float]:
    """A tone by its chance, and that chance; the same for a name at each call. Without chances: uniform over all tones."""
    known = chances or dict.fromkeys(TONES, 1 / len(TONES))
    place = int.from_bytes(hashlib.blake2b(b"tone/" + name.encode(), digest_size=8).digest(), "big") / 2**64 * sum(known.values())
    for tone, chance in known.items():
        place -= chance
        if place < 0:
            return tone, chance
    return tone, chance
