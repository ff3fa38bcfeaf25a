"""Are the online clusters those that batch k-means finds, and do customers stay in theirs?"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from benchmarks import Row, benchmark
from benchmarks.relevance.panel import Panel, panel
from models.learning.clusters import CLIP, ClusterLearner, assign, batch_kmeans, silhouette

MONTHS = (89, 119, 150, 180, 211, 242, 272, 303, 333)
MEASURED = (180, 272)
SEEDS = 5


def vectors(data: Panel, day: int) -> tuple[np.ndarray, np.ndarray]:
    """Households with five visits and more, and their (households, 5) raw features at the end of ``day``."""
    known = data.visits[:, : day + 1]
    visits = known.sum(axis=1)
    weights = 2.0 ** (-(day - np.arange(day + 1)) / 90)
    first, last = known.argmax(axis=1), day - known[:, ::-1].argmax(axis=1)
    gap = (last - first) / np.maximum(visits - 1, 1)
    decayed = known @ weights
    basket = (data.spent[:, : day + 1] @ weights) / np.maximum(decayed, 1e-9)
    lines = data.lines[data.lines[:, 1] <= day]
    household, aged = lines[:, 0].astype(int), weights[lines[:, 1].astype(int)]
    count = len(visits)
    total = np.maximum(np.bincount(household, aged, count), 1e-9)
    own = np.bincount(household, aged * lines[:, 4], count) / total
    coupon = np.bincount(household, aged * lines[:, 5], count) / total
    placed = lines[:, 2] >= 0
    shares = np.zeros((count, len(data.categories)))
    np.add.at(shares, (household[placed], lines[placed, 2].astype(int)), aged[placed])
    shares /= np.maximum(shares.sum(axis=1, keepdims=True), 1e-9)
    entropy = -(shares * np.log(np.maximum(shares, 1e-12))).sum(axis=1)
    made = np.column_stack([np.log(np.maximum(gap, 0.5)), np.log(np.maximum(basket, 0.5)), entropy, np.log(coupon + 0.01), own])
    chosen = np.flatnonzero(visits >= 5)
    return chosen, made[chosen]


def adjusted_rand(one: np.ndarray, other: np.ndarray) -> float:
    """Agreement of two partitions, 0 for chance and 1 for the same (Hubert and Arabie)."""
    _, a = np.unique(one, return_inverse=True)
    _, b = np.unique(other, return_inverse=True)
    table = np.zeros((a.max() + 1, b.max() + 1))
    np.add.at(table, (a, b), 1)

    def pairs(counts: np.ndarray) -> float:
        return float((counts * (counts - 1) / 2).sum())

    rows, columns, everything = pairs(table.sum(axis=1)), pairs(table.sum(axis=0)), len(one) * (len(one) - 1) / 2
    expected = rows * columns / everything
    return (pairs(table) - expected) / ((rows + columns) / 2 - expected)


def _batch(points: np.ndarray) -> np.ndarray:
    rng = np.random.default_rng(0)
    tried = [batch_kmeans(points, 5, rng) for _ in range(20)]
    labelled = [((points[:, None] - centres) ** 2).sum(axis=2) for centres in tried]
    return np.asarray(min(labelled, key=lambda distances: distances.min(axis=1).sum()).argmin(axis=1))


@benchmark("clusters")
def clusters(home: Path, runs: int) -> list[Row]:
    """Each month's end every household's vector arrives, in random order."""
    data = panel()
    months = {day: vectors(data, day) for day in MONTHS}
    agreement, ours, theirs, kept = [], [], [], []
    for seed in range(SEEDS):
        learner, rng = ClusterLearner(seed=seed), np.random.default_rng(seed)
        current: dict[int, str] = {}
        for day, (households, raw) in months.items():
            for place in rng.permutation(len(households)):
                learner.learn(str(households[place]), raw[place].tolist())
            snapshot = learner.snapshot(1, 0.0)
            assert snapshot is not None
            held = {int(h): assign(snapshot, row, current.get(int(h))) for h, row in zip(households, raw.tolist(), strict=True)}
            if current:
                kept.append(float(np.mean([held[h] == current[h] for h in held if h in current])))
            current = held
            if day in MEASURED:
                points = np.clip((raw - raw.mean(axis=0)) / raw.std(axis=0), -CLIP, CLIP)
                labels = np.asarray([assign(snapshot, row, None) for row in raw.tolist()])
                batch = _batch(points)
                agreement.append(adjusted_rand(labels, batch))
                ours.append(silhouette(points, np.unique(labels, return_inverse=True)[1], most=3000))
                theirs.append(silhouette(points, batch, most=3000))
    spread = f"smallest {min(agreement):.3f} of {len(agreement)}"
    return [
        Row("clusters, agreement with batch", float(np.mean(agreement)), None, "ARI", SEEDS, note=spread),
        Row("clusters, silhouette", float(np.mean(ours)), float(np.mean(theirs)), "", SEEDS, "batch k-means, best of 20"),
        Row("clusters, same name a month on", float(np.mean(kept)), None, "share", SEEDS, note=f"smallest {min(kept):.3f}"),
    ]
