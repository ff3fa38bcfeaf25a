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


class Release(msgspec.Struct, frozen=True):
    """Topic ``model.releases``, key = cluster id: the adapter that serves it. Writers refuse an older ``epoch`` or another base."""

    release_id: str
    cluster: str
    epoch: int
    artifact: str  # fsspec URL of a safetensors file, named by its sha256
    sha256: str
    base_sha256: str
    rank: int
    at: str
    parent: str | None = None
    metrics: dict[str, float] = {}
    examples: int = 0
    share: float = 1.0  # canary share; below 1 the parent serves the rest
    rolled_back_from: str | None = None
