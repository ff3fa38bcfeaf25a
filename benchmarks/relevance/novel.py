"""What will a household buy that it never bought before?"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from benchmarks import Row, benchmark
from benchmarks.relevance.panel import DAYS, panel
from benchmarks.relevance.timing import interval
from models.learning.items import ItemsLearner, recommend
from models.learning.replenishment import DAY

DATES = (*range(105, 330, 28), 350)
HALF_LIFE = 60  # days, of a household's own counts


@benchmark("recommendation")
def recommendation(home: Path, runs: int) -> list[Row]:
    """At ten dates: do ten categories new to a household hold one that it buys in the next 14 days?"""
    data, learner = panel(), ItemsLearner()
    ordered = data.bought[np.lexsort((data.bought[:, 0], data.bought[:, 1]))]
    by_day = np.split(ordered, np.searchsorted(ordered[:, 1], np.arange(1, DAYS)))
    households = len(data.visits)
    first = data.visits.argmax(axis=1)
    owned: list[dict[str, tuple[float, int]]] = [{} for _ in range(households)]
    hits = {name: np.zeros(households) for name in ("ours", "popular")}
    asked = np.zeros(households)
    for day in range(max(DATES) + 1):
        rows = by_day[day]
        for basket in np.split(rows, np.flatnonzero(np.diff(rows[:, 0])) + 1):
            if len(basket):
                who, names = int(basket[0, 0]), [data.categories[c] for c in basket[:, 2]]
                _buy(learner, owned[who], names, day, int(first[who]))
        if day not in DATES:
            continue
        snapshot = learner.snapshot(day)
        assert snapshot is not None
        recent = np.concatenate(by_day[day - 27 : day + 1])
        by_count = np.argsort(-np.bincount(recent[:, 2], minlength=len(data.categories)), kind="stable")
        popular = [data.categories[c] for c in by_count]
        coming: dict[int, set[str]] = {}
        for who, _, category in np.concatenate(by_day[day + 1 : day + 15]):
            if data.categories[category] not in owned[who]:
                coming.setdefault(int(who), set()).add(data.categories[category])
        for who, wanted in coming.items():
            if data.visits[who, : day + 1].sum() < 3:
                continue
            counts = {name: count * 2 ** (-(day - at) / HALF_LIFE) for name, (count, at) in owned[who].items()}
            asked[who] += 1
            hits["ours"][who] += any(name in wanted for name, _ in recommend(snapshot, counts, 10))
            hits["popular"][who] += any(name in wanted for name in [name for name in popular if name not in counts][:10])
    ours, theirs = (float(hits[name].sum() / asked.sum()) for name in ("ours", "popular"))
    low, high = interval(hits["ours"] - hits["popular"], asked)
    note = f"difference {ours - theirs:+.4f} [{low:+.4f}, {high:+.4f}]; {int(asked.sum()):,} household-dates"
    return [Row("new category bought, hit@10", ours, theirs, "share", 1, "popularity, 28 d", note=note)]


def _buy(learner: ItemsLearner, owned: dict[str, tuple[float, int]], names: list[str], day: int, first: int) -> None:
    new = [name for name in names if name not in owned]
    learner.learn(new, list(owned), {name: () for name in names}, day * DAY, first * DAY)
    for name in names:
        count, at = owned.get(name, (0.0, day))
        owned[name] = (count * 2 ** (-(day - at) / HALF_LIFE) + 1, day)
