"""Chance that a customer visits again within 7, 14 and 30 days.

Method (measured in docs/relevance.md, where it beats BG/NBD and ties with
gradient boosting): a river logistic regression for each horizon, over
standardised features, learning a row once its horizon has passed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import msgspec
from river.linear_model import LogisticRegression
from river.optim import AdaGrad
from river.preprocessing import StandardScaler

from schemas.learning import RhythmWeights

HORIZONS = (7, 14, 30)
RATE = 0.05
FEWEST = 200  # rows a horizon must have learned before its weights are published


class RhythmLearned(msgspec.Struct):
    """One horizon as plain numbers."""

    seen: int
    means: list[float]
    variances: list[float]
    weights: list[float]
    squares: list[float]
    intercept: float


class _Horizon:
    """river's ``StandardScaler | LogisticRegression(AdaGrad)``, with its state in the open."""

    def __init__(self, width: int) -> None:
        self.width, self.seen = width, 0
        self.scaler = StandardScaler()
        self.model = LogisticRegression(AdaGrad(RATE))

    def learn(self, values: Sequence[float], label: bool) -> None:
        x = dict(enumerate(values))
        self.scaler.learn_one(x)
        self.model.learn_one(self.scaler.transform_one(x), label)
        self.seen += 1

    def folded(self) -> tuple[tuple[float, ...], float]:
        """Weights and intercept over raw features: the scaler is folded in."""
        weights, intercept = [], float(self.model.intercept)
        for place in range(self.width):
            spread = math.sqrt(self.scaler.vars[place])
            weight = self.model._weights.get(place, 0.0) / spread if spread > 0 else 0.0  # noqa: SLF001
            weights.append(float(weight))
            intercept -= weight * self.scaler.means[place]
        return tuple(weights), float(intercept)

    def dump(self) -> RhythmLearned:
        places, weights, squares = range(self.width), self.model._weights, self.model.optimizer.g2  # noqa: SLF001
        return RhythmLearned(
            self.seen,
            [float(self.scaler.means[p]) for p in places],
            [float(self.scaler.vars[p]) for p in places],
            [float(weights.get(p, 0.0)) for p in places],
            [float(squares[p]) for p in places],
            float(self.model.intercept),
        )

    @classmethod
    def load(cls, found: RhythmLearned) -> _Horizon:
        made = cls(len(found.means))
        made.seen = found.seen
        if not found.seen:
            return made
        for place in range(made.width):
            made.scaler.counts[place] = found.seen
            made.scaler.means[place] = found.means[place]
            made.scaler.vars[place] = found.variances[place]
            made.model._weights[place] = found.weights[place]  # noqa: SLF001
            made.model.optimizer.g2[place] = found.squares[place]
        made.model.optimizer.n_iterations = found.seen
        made.model.intercept = found.intercept
        return made


class RhythmLearner:
    """Learns matured visits; the same rows in the same order give the same weights."""

    def __init__(self) -> None:
        self._horizons: list[_Horizon] = []

    @property
    def seen(self) -> int:
        """Rows of the horizon that has learned most."""
        return max((horizon.seen for horizon in self._horizons), default=0)

    def learn(self, features: Sequence[float], labels: Sequence[bool | None]) -> bool:
        """One row: what stood at the decision, and whether a visit followed within each horizon (None: not known).

        Returns whether it was learned: a row with a number that is not finite is not. A row of another width means that the
        features were changed: what was learned of the old ones says nothing of these, so learning begins anew.
        """
        if not all(map(math.isfinite, features)):
            return False
        if not self._horizons or len(features) != self._horizons[0].width:
            self._horizons = [_Horizon(len(features)) for _ in HORIZONS]
        for horizon, label in zip(self._horizons, labels, strict=True):
            if label is not None:
                horizon.learn(features, label)
        return True

    def weights(self, epoch: int) -> RhythmWeights | None:
        """The published form; None until every horizon has learned from enough rows."""
        if not self._horizons or min(horizon.seen for horizon in self._horizons) < FEWEST:
            return None
        folded = [horizon.folded() for horizon in self._horizons]
        return RhythmWeights(
            epoch=epoch,
            weights=tuple(weights for weights, _ in folded),
            intercepts=tuple(intercept for _, intercept in folded),
            learned=self.seen,
        )

    def to_bytes(self) -> bytes:
        """The whole state as MessagePack."""
        return msgspec.msgpack.encode([horizon.dump() for horizon in self._horizons])

    @classmethod
    def from_bytes(cls, data: bytes) -> RhythmLearner:
        """What ``to_bytes`` wrote; raises ``msgspec.DecodeError`` where it is something else."""
        made = cls()
        made._horizons = [_Horizon.load(found) for found in msgspec.msgpack.decode(data, type=list[RhythmLearned])]
        return made


def predict(weights: RhythmWeights, values: Sequence[float]) -> tuple[float, float, float]:
    """Chance of a visit within 7, 14 and 30 days, never falling with the horizon. ``values`` are raw features."""
    chances = []
    for row, intercept in zip(weights.weights, weights.intercepts, strict=True):
        logit = intercept + math.fsum(weight * value for weight, value in zip(row, values, strict=True))
        chances.append(1.0 / (1.0 + math.exp(-max(-30.0, min(30.0, logit)))))
    week, fortnight, month = chances
    fortnight = max(week, fortnight)
    return week, fortnight, max(fortnight, month)
