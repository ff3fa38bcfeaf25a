"""Groups of customers who shop alike: online k-means whose names stay put.

Method (measured in docs/relevance.md): vectors are standardised and clipped at
3; centres begin as the best of five k-means++ starts and then move by
1/min(n, 400) towards each vector. Now and then the centres settle on a sample
of customers that is kept beside them, and the sample is clustered afresh too;
that fit is adopted where it is clearly better or where customers have drifted.
Clusters then take over the names of the old ones that they overlap most
(Hungarian matching, Jaccard of the sample).
Clusters are for words, tone and reports; predicting is the business of
``models.learning.rhythm`` and ``models.learning.replenishment``.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray
from river.cluster import KMeans
from scipy.optimize import linear_sum_assignment

from models.learning.portrait import describe
from schemas.mail import iso
from schemas.release import Cluster, Snapshot

FEATURES = ("log_gap", "log_basket", "category_entropy", "coupon_share", "own_brand_share")
CLIP = 3.0
HYSTERESIS = 0.85  # another centre must be nearer than this share of the distance to one's own
SLOWEST = 400  # the step never gets smaller than 1/400, so that centres follow
STARTS = 5
SAMPLE = 2000  # customers kept for the fresh fit
WARM = 1000  # customers known before the first fit that lasts
FIRST = 100  # vectors before a first, provisional fit
K = 5  # clusters that are looked for
EACH = 2  # customers known for each of them before that first fit
REFIT = 2000  # vectors between fresh fits
SOONER = 0.98  # the same before the first fit that lasts
GAIN = 0.95  # a fit with less than this share of another's error is clearly better
DRIFT = 1.25  # recent error over long-run error
SAME = 0.3  # Jaccard below which a cluster is a new one

Matrix = NDArray[np.float64]
Labels = NDArray[np.intp]


class ClustersLearned(msgspec.Struct):
    """All that ``ClusterLearner`` knows, as plain numbers; ``sample`` maps a customer to the newest raw vector."""

    seed: int
    k: int
    learned: int = 0
    sample: dict[str, list[float]] = {}
    mean: list[float] = []
    scale: list[float] = []
    centres: list[list[float]] = []
    ids: list[str] = []
    parents: list[str | None] = []
    counts: list[float] = []
    named: int = 0  # names given so far
    fitted_on: int = 0  # customers in the sample at the last adopted fit
    fitted_at: int = 0  # vectors learned at the last fit, adopted or not
    error_short: float = 0.0
    error_long: float = 0.0
    refits: int = 0
    adopted: int = 0


class ClusterLearner:
    """Learns from (customer, raw vector) in the order of arrival; the same arrivals and seed give the same clusters."""

    def __init__(self, k: int = K, seed: int = 0, features: Sequence[str] = FEATURES) -> None:
        self.features = tuple(features)
        self.state = ClustersLearned(seed=seed, k=k)
        self._names: list[str] = []  # of the sample, by place
        self._river = KMeans(n_clusters=k, seed=seed)

    def learn(self, customer: str, vector: Sequence[float]) -> str | None:
        """Take one raw vector; returns the cluster it moved, None before the first fit or for a vector that is not finite."""
        state = self.state
        if len(vector) != len(self.features) or not all(map(math.isfinite, vector)):
            return None
        state.learned += 1
        self._keep(customer, list(vector))
        moved = self._step(vector) if state.centres else None
        if self._fit_is_due():
            self._fit()
        return moved

    def forget(self, customer: str) -> None:
        """Take a customer who objected out of the sample."""
        if self.state.sample.pop(customer, None) is not None:
            self._names.remove(customer)

    def snapshot(self, epoch: int, at: float) -> Snapshot | None:
        """The clusters as they stand, None before the first fit. ``at`` in seconds; sizes are customers of the sample."""
        state = self.state
        if not state.centres:
            return None
        scaled = self._scaled()
        centres = self._centres()
        labels = _nearest(scaled, centres)
        sizes = np.bincount(labels, minlength=len(centres))
        raws = [self._raw(centre) for centre in centres]
        said = describe([dict(zip(self.features, centre, strict=True)) for centre in centres.tolist()], raws)
        clusters = tuple(
            Cluster(id=name, size=int(size), description=text, centre=tuple(centre), raw=raw, parent=parent)
            for name, size, text, centre, raw, parent in zip(state.ids, sizes, said, centres.tolist(), raws, state.parents, strict=True)
        )
        quality = {
            "silhouette": silhouette(scaled, labels, state.seed),
            "error": _error(scaled, centres[labels]),
            "refits": float(state.refits),
            "adopted": float(state.adopted),
        }
        return Snapshot(
            snapshot_id=snapshot_id(epoch),
            epoch=epoch,
            at=iso(at),
            features=self.features,
            mean=tuple(state.mean),
            scale=tuple(state.scale),
            clusters=clusters,
            learned=state.learned,
            quality={name: round(value, 6) for name, value in quality.items()},
            parent=snapshot_id(epoch - 1) if epoch > 0 else None,
        )

    def to_bytes(self) -> bytes:
        """The whole state as MessagePack."""
        if self.state.centres:
            self.state.centres = self._centres().tolist()
        return msgspec.msgpack.encode(self.state)

    @classmethod
    def from_bytes(cls, data: bytes, features: Sequence[str] = FEATURES) -> ClusterLearner:
        """What ``to_bytes`` wrote; raises ``msgspec.ValidationError`` where it is something else."""
        state = msgspec.msgpack.decode(data, type=ClustersLearned)
        made = cls(state.k, state.seed, features)
        made.state = state
        made._names = list(state.sample)
        made._serve(state.centres)
        return made

    @classmethod
    def resumed(cls, snapshot: Snapshot, k: int = 5, seed: int = 0) -> ClusterLearner:
        """Go on from what was published, where the state itself is lost: names and centres stay, the sample begins anew."""
        made = cls(k, seed, snapshot.features)
        found = snapshot.clusters
        made.state.learned = made.state.fitted_at = snapshot.learned
        made.state.mean, made.state.scale = list(snapshot.mean), list(snapshot.scale)
        made.state.ids, made.state.parents = [cluster.id for cluster in found], [cluster.parent for cluster in found]
        made.state.counts = [float(max(1, cluster.size)) for cluster in found]
        made.state.named = 1 + max(int(name.removeprefix("c")) for cluster in found for name in (cluster.id, cluster.parent) if name)
        made.state.fitted_on = max(FIRST, min(WARM - 1, sum(cluster.size for cluster in found)))
        made.state.error_short = made.state.error_long = snapshot.quality.get("error", 1.0)
        made._serve([list(cluster.centre) for cluster in found])
        return made

    # -- online ---------------------------------------------------------------------------------

    def _keep(self, customer: str, vector: list[float]) -> None:
        """Newest vector of each customer; a full sample gives up a random customer for a new one."""
        sample = self.state.sample
        if customer not in sample:
            if len(self._names) >= SAMPLE:
                place = random.Random(self.state.seed * 1_000_003 + self.state.learned).randrange(SAMPLE)
                del sample[self._names[place]]
                del self._names[place]
            self._names.append(customer)
        sample[customer] = vector

    def _step(self, vector: Sequence[float]) -> str:
        state = self.state
        x = dict(enumerate(_standard(vector, state.mean, state.scale)))
        chosen = self._river.predict_one(x)
        centre = self._river.centers[chosen]
        state.counts[chosen] += 1
        # river's own halflife is one for all centres; the step that held up in measurement is each centre's own.
        step = 1.0 / min(state.counts[chosen], SLOWEST)
        error = 0.0
        for place, value in x.items():
            gap = value - centre[place]
            error += gap * gap
            centre[place] += step * gap
        state.error_short += 0.01 * (error - state.error_short)
        state.error_long += 0.001 * (error - state.error_long)
        return state.ids[chosen]

    # -- fresh fits -----------------------------------------------------------------------------

    def _fit_is_due(self) -> bool:
        state, known = self.state, len(self._names)
        if not state.centres:
            return state.learned >= FIRST and known >= EACH * state.k and state.learned % 20 == 0
        if state.fitted_on < WARM:
            grown = known >= min(WARM, 2 * state.fitted_on)
            return grown or state.learned - state.fitted_at >= REFIT
        since = state.learned - state.fitted_at
        drifted = state.error_short > DRIFT * state.error_long and since >= REFIT // 4
        return drifted or since >= REFIT

    def _fit(self) -> None:
        state = self.state
        raw = np.asarray(list(state.sample.values()))
        growing = state.fitted_on < WARM
        drifted = state.error_short > DRIFT * state.error_long
        mean, scale = raw.mean(axis=0), raw.std(axis=0)
        scale[scale < 1e-9] = 1.0
        points = np.clip((raw - mean) / scale, -CLIP, CLIP)
        rng = np.random.default_rng((state.seed, state.learned))
        fresh = _best_of(points, state.k, rng)
        state.refits += 1
        state.fitted_at = state.learned
        if state.centres:
            serving = (self._centres() * np.asarray(state.scale) + np.asarray(state.mean) - mean) / scale
            old = _nearest(points, serving)
            settled = _lloyd(points, serving)
            # Shoppers are a continuum: of two fits as good as each other, the one that moves fewer of them wins.
            gain = 1.0 if drifted else SOONER if growing else GAIN
            if len(settled) == state.k and _loss(points, fresh) >= gain * _loss(points, settled):
                fresh = settled
            ids, parents = self._match(old, _nearest(points, fresh), len(fresh))
        else:
            ids, parents = [self._name() for _ in fresh], [None] * len(fresh)
        labels = _nearest(points, fresh)
        state.ids, state.parents = ids, parents
        state.mean, state.scale = mean.tolist(), scale.tolist()
        state.counts = [float(max(1, n)) for n in np.bincount(labels, minlength=len(fresh))]
        state.fitted_on = len(points)
        state.error_short = state.error_long = _error(points, fresh[labels])
        state.adopted += 1
        self._serve(fresh.tolist())

    def _match(self, old: Labels, new: Labels, count: int) -> tuple[list[str], list[str | None]]:
        """Names for the fresh clusters: an old one's where they share customers, else a new name with its parent."""
        state = self.state
        shared = np.zeros((len(state.ids), count))
        np.add.at(shared, (old, new), 1)
        union = shared.sum(axis=1, keepdims=True) + shared.sum(axis=0, keepdims=True) - shared
        jaccard = shared / np.maximum(union, 1)
        rows, columns = linear_sum_assignment(-jaccard)
        kept = {int(column): int(row) for row, column in zip(rows, columns, strict=True) if jaccard[row, column] >= SAME}
        ids: list[str] = []
        parents: list[str | None] = []
        for place in range(count):
            if place in kept:
                ids.append(state.ids[kept[place]])
                parents.append(state.parents[kept[place]])
            else:
                ids.append(self._name())
                parents.append(state.ids[int(shared[:, place].argmax())])
        return ids, parents

    def _name(self) -> str:
        self.state.named += 1
        return f"c{self.state.named - 1}"

    # -- views ----------------------------------------------------------------------------------

    def _serve(self, centres: list[list[float]]) -> None:
        self.state.centres = centres
        self._river.n_clusters = len(centres)
        self._river.centers = {place: dict(enumerate(centre)) for place, centre in enumerate(centres)}

    def _centres(self) -> Matrix:
        return np.asarray([list(centre.values()) for centre in self._river.centers.values()])

    def _scaled(self) -> Matrix:
        raw = np.asarray(list(self.state.sample.values())).reshape(-1, len(self.features))
        return np.clip((raw - np.asarray(self.state.mean)) / np.asarray(self.state.scale), -CLIP, CLIP)

    def _raw(self, centre: Matrix) -> dict[str, float]:
        values = centre * np.asarray(self.state.scale) + np.asarray(self.state.mean)
        return {name: round(float(value), 6) for name, value in zip(self.features, values, strict=True)}


def snapshot_id(epoch: int) -> str:
    """The published name of an epoch."""
    return f"s{epoch:06d}"


def assign(snapshot: Snapshot, vector: Sequence[float], current: str | None) -> str:
    """The cluster of a raw vector; one that the customer is in keeps them unless another centre is clearly nearer."""
    x = _standard(vector, snapshot.mean, snapshot.scale)
    best, best_id, own = math.inf, "", math.inf
    for cluster in snapshot.clusters:
        distance = math.dist(x, cluster.centre)
        if distance < best:
            best, best_id = distance, cluster.id
        if cluster.id == current:
            own = distance
    if current is not None and own < math.inf and not best < HYSTERESIS * own:
        return current
    return best_id


def silhouette(points: Matrix, labels: Labels, seed: int = 0, most: int = 400) -> float:
    """Mean silhouette of up to ``most`` points against the same points; 0 where fewer than two clusters have any."""
    if len(points) > most:
        chosen = np.random.default_rng(seed).choice(len(points), most, replace=False)
        points, labels = points[chosen], labels[chosen]
    present = np.unique(labels)
    if len(present) < 2:
        return 0.0
    squares = (points**2).sum(axis=1)
    distances = np.sqrt(np.maximum(squares[:, None] + squares[None, :] - 2 * points @ points.T, 0))
    members = (labels[:, None] == present[None, :]).astype(float)
    totals, sizes = distances @ members, members.sum(axis=0)
    own = np.searchsorted(present, labels)
    rows = np.arange(len(points))
    inside = totals[rows, own] / np.maximum(sizes[own] - 1, 1)
    means = totals / sizes
    means[rows, own] = np.inf
    outside = means.min(axis=1)
    values = np.where(sizes[own] > 1, (outside - inside) / np.maximum(np.maximum(inside, outside), 1e-12), 0.0)
    return float(values.mean())


def batch_kmeans(points: Matrix, k: int, rng: np.random.Generator) -> Matrix:
    """One k-means++ start and Lloyd's iterations: centres (k or, of fewer distinct points, as many; d)."""
    return _lloyd(points, _plus_plus(points, k, rng))


def _lloyd(points: Matrix, centres: Matrix, rounds: int = 50) -> Matrix:
    for _ in range(rounds):
        labels = _nearest(points, centres)
        moved = np.stack([points[labels == j].mean(axis=0) if (labels == j).any() else centres[j] for j in range(len(centres))])
        if np.allclose(moved, centres, atol=1e-7):
            break
        centres = moved
    return np.clip(centres, -CLIP, CLIP)


def _plus_plus(points: Matrix, k: int, rng: np.random.Generator) -> Matrix:
    chosen = [points[rng.integers(len(points))]]
    nearest = ((points - chosen[0]) ** 2).sum(axis=1)
    while len(chosen) < k and nearest.sum() > 1e-12:
        chosen.append(points[rng.choice(len(points), p=nearest / nearest.sum())])
        nearest = np.minimum(nearest, ((points - chosen[-1]) ** 2).sum(axis=1))
    return np.stack(chosen)


def _best_of(points: Matrix, k: int, rng: np.random.Generator) -> Matrix:
    tried = [batch_kmeans(points, k, rng) for _ in range(STARTS)]
    return min(tried, key=lambda centres: _loss(points, centres))


def _nearest(points: Matrix, centres: Matrix) -> Labels:
    return np.asarray(((points[:, None, :] - centres[None, :, :]) ** 2).sum(axis=2).argmin(axis=1))


def _loss(points: Matrix, centres: Matrix) -> float:
    return _error(points, centres[_nearest(points, centres)])


def _error(points: Matrix, centres: Matrix) -> float:
    return float(((points - centres) ** 2).sum(axis=1).mean()) if len(points) else 0.0


def _standard(vector: Sequence[float], mean: Sequence[float], scale: Sequence[float]) -> list[float]:
    return [max(-CLIP, min(CLIP, (value - m) / s)) for value, m, s in zip(vector, mean, scale, strict=True)]


def centre_of(snapshot: Snapshot, cluster: str) -> Mapping[str, float]:
    """A cluster's raw centre by feature name; empty where the snapshot has no such cluster."""
    return next((found.raw for found in snapshot.clusters if found.id == cluster), {})
