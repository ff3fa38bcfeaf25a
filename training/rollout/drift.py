"""Whether a cluster has changed since it was last learned: ADWIN on its customers' distance to the centre, and on the serving loss.

ADWIN (Bifet and Gavalda 2007), river's: a window that grows while its mean
stays, and is cut where two halves of it differ.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from river.drift import ADWIN

from schemas.release import Snapshot

CLIP = 3.0  # of a standardised feature, as the clusters themselves are learned
DELTA = 0.002  # chance of a false cut, river's and the paper's


class Drift:
    """One pair of windows for each cluster; ``drifted`` collects what has changed until it is taken."""

    def __init__(self, delta: float = DELTA) -> None:
        self._delta = delta
        self._windows: dict[tuple[str, str], ADWIN] = {}
        self.drifted: dict[str, str] = {}

    def distance(self, cluster: str, value: float) -> None:
        """A customer's distance to the centre, in standardised units."""
        self._update(cluster, "distance to the centre", value)

    def loss(self, cluster: str, value: float) -> None:
        """The serving release's loss (nats a token) on a mail that it was not fitted on. Only a rise is drift."""
        self._update(cluster, "held-out loss", value, rising=True)

    def learned(self, cluster: str) -> None:
        """The cluster was refitted: the loss is another model's from here on."""
        self.drifted.pop(cluster, None)
        self._windows.pop((cluster, "held-out loss"), None)

    def forget(self) -> None:
        """What was read to catch up is no news."""
        self.drifted.clear()

    def _update(self, cluster: str, what: str, value: float, rising: bool = False) -> None:
        window = self._windows.setdefault((cluster, what), ADWIN(delta=self._delta))
        before = window.estimation
        window.update(value)
        if window.drift_detected and (not rising or window.estimation > before):
            self.drifted[cluster] = f"{what} went from {before:.2f} to {window.estimation:.2f}"


def nearest(snapshot: Snapshot, vector: Sequence[float]) -> tuple[str, float]:
    """Cluster and distance of a raw vector, in standardised units."""
    x = [max(-CLIP, min(CLIP, (value - mean) / scale)) for value, mean, scale in zip(vector, snapshot.mean, snapshot.scale, strict=True)]
    distance, cluster = min((math.dist(x, cluster.centre), cluster.id) for cluster in snapshot.clusters)
    return cluster, distance
