"""Published models: clusters' centres, and each cluster's adapter."""

from __future__ import annotations

import msgspec


class Cluster(msgspec.Struct, frozen=True):
    """One cluster of a snapshot. ``centre`` is in standardised units, ``raw`` in the features' own."""

    id: str
    size: int
    description: str
    centre: tuple[float, ...]
    raw: dict[str, float]
    parent: str | None = None  # the cluster it split from, whose adapter it inherits


class Snapshot(msgspec.Struct, frozen=True):
    """Topic ``model.clusters``, key = snapshot id; the newest ``epoch`` serves."""

    snapshot_id: str
    epoch: int
    at: str
    features: tuple[str, ...]
    mean: tuple[float, ...]  # of the raw features, for standardising
    scale: tuple[float, ...]
    clusters: tuple[Cluster, ...]
    learned: int  # vectors seen
    quality: dict[str, float] = {}
    parent: str | None = None


class Ancestor(msgspec.Struct, frozen=True):
    """What a rollback needs of an earlier release: compaction takes its own record as soon as the next one is published."""

    release_id: str
    epoch: int
    artifact: str
    sha256: str
    base_sha256: str
    rank: int


class Release(msgspec.Struct, frozen=True):
    """Topic ``model.releases``, key = cluster id: the adapter that serves it. Writers refuse an older ``epoch`` or another base."""

    release_id: str
    cluster: str
    epoch: int
    artifact: str  # fsspec URL of a safetensors file, named by its sha256; empty = the base alone
    sha256: str
    base_sha256: str
    rank: int
    at: str
    parent: str | None = None
    metrics: dict[str, float] = {}
    examples: int = 0
    share: float = 1.0  # canary share; below 1 the parent serves the rest
    rolled_back_from: str | None = None
    why: str = ""  # of a rollback: the figure that worsened, or who asked
    inherited_from: str | None = None  # the cluster that this one split from
    before: tuple[Ancestor, ...] = ()  # the releases to go back to, newest first
    odds: dict[str, float] = {}  # nats by clause id, newer than those in the artifact; empty = the artifact's own

    def ancestor(self) -> Ancestor:
        """What a later release remembers of it."""
        return Ancestor(self.release_id, self.epoch, self.artifact, self.sha256, self.base_sha256, self.rank)
