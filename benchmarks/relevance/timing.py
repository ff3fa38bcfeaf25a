"""Do the models predict? The panel's own protocols, against what is usual elsewhere."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from scipy.optimize import minimize
from scipy.special import gammaln

from benchmarks import Row, benchmark
from benchmarks.relevance.panel import DAYS, panel
from models.learning.replenishment import HALF_LIFE, exposure, hazard
from models.learning.rhythm import RhythmLearner, predict

FIRST_WEEK, LAST_WEEK = 63, 357  # Sundays
SCORED = 59  # 1 March
REFITS = (58, 89, 119, 150, 180, 211, 242, 272, 303, 333)  # ends of months


def interval(differences: np.ndarray, counts: np.ndarray, draws: int = 300) -> tuple[float, float]:
    """95 % interval of a mean difference by drawing households anew; sums and counts a household."""
    rng = np.random.default_rng(0)
    drawn = rng.integers(0, len(counts), (draws, len(counts)))
    means = differences[drawn].sum(axis=1) / counts[drawn].sum(axis=1)
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)


# -- replenishment ------------------------------------------------------------------------------


@benchmark("replenishment")
def replenishment(home: Path, runs: int) -> list[Row]:
    """Each Sunday evening: which five categories does a household buy in the week to come?"""
    data = panel()
    shape = (len(data.visits), len(data.categories))
    ordered = data.bought[data.bought[:, 1].argsort(kind="stable")]
    by_day = np.split(ordered, np.searchsorted(ordered[:, 1], np.arange(1, DAYS)))
    first_visit = np.where(data.visits.any(axis=1), data.visits.argmax(axis=1), DAYS)
    count, decayed = np.zeros(shape), np.zeros(shape)
    first, last = np.full(shape, np.nan), np.full(shape, np.nan)
    hits: dict[str, np.ndarray] = {name: np.zeros(shape[0]) for name in ("ours", "frequent", "due")}
    weeks = np.zeros(shape[0])
    for day in range(LAST_WEEK + 1):
        decayed *= 2 ** (-1 / HALF_LIFE)
        who, what = by_day[day][:, 0], by_day[day][:, 2]
        count[who, what] += 1
        decayed[who, what] += 1
        first[who, what] = np.where(np.isnan(first[who, what]), day, first[who, what])
        last[who, what] = day
        if day < FIRST_WEEK or day % 7:
            continue
        age = np.maximum(day - first_visit + 1.0, 0.0)
        week = np.concatenate(by_day[day + 1 : day + 8])
        truth = np.zeros(shape, bool)
        truth[week[:, 0], week[:, 2]] = True
        scored = (first_visit <= day) & truth.any(axis=1)
        at_risk = HALF_LIFE / math.log(2) * (1 - 2 ** (-age / HALF_LIFE))
        prior = (age[:, None] * (count > 0)).sum(axis=0) / np.maximum(count.sum(axis=0), 1)
        prior = np.where(count.sum(axis=0) > 0, prior, 1e6)
        rate = (0.5 + decayed) / (0.5 * np.maximum(prior, 1.0) + at_risk[:, None])
        if day == FIRST_WEEK:  # the array form is the very function that serves
            for i, j in np.random.default_rng(0).integers(0, shape, (200, 2)):
                assert math.isclose(hazard(decayed[i, j], exposure(age[i]), prior[j]), -math.expm1(-7 * rate[i, j]), rel_tol=1e-9)
        gap = np.where(count > 1, (last - first) / np.maximum(count - 1, 1), np.nan)
        due = np.nan_to_num((day - last) / gap, nan=-1.0)
        for name, score in (("ours", rate), ("frequent", count + 1e-6 * count.sum(axis=0) / count.sum()), ("due", due)):
            top = np.argpartition(-score, 5, axis=1)[:, :5]
            hits[name] += np.where(scored, np.take_along_axis(truth, top, axis=1).mean(axis=1), 0)
        weeks += scored
    total = weeks.sum()
    ours, frequent, due_score = (float(hits[name].sum() / total) for name in ("ours", "frequent", "due"))
    low, high = interval(hits["ours"] - hits["frequent"], weeks)
    note = f"difference {ours - frequent:+.4f} [{low:+.4f}, {high:+.4f}]; {int(total):,} household-weeks"
    return [
        Row("replenishment P@5, category", ours, frequent, "share", against="most frequent, then popular", note=note),
        Row("replenishment P@5, category, due", ours, due_score, "share", against="elapsed / mean gap"),
    ]


# -- next visit ---------------------------------------------------------------------------------


@dataclass
class HouseholdHistory:
    """What is known of each household at the end of a day, as arrays over households (times in days)."""

    households: int
    seen: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        n = self.households
        self.first, self.last = np.full(n, np.nan), np.full(n, np.nan)
        self.n, self.gaps, self.squares, self.smooth = np.zeros(n), np.zeros(n), np.zeros(n), np.full(n, np.nan)
        self.rates = {half: np.zeros(n) for half in (7, 30, 90)}
        self.basket, self.spent = np.zeros(n), np.zeros(n)
        self.weekday = np.zeros((n, 7))

    def add(self, day: int, came: np.ndarray, spent: np.ndarray) -> None:
        for half, counts in self.rates.items():
            counts *= 2 ** (-1 / half)
            counts += came
        self.weekday *= 2 ** (-1 / 120)
        self.weekday[:, day % 7] += came
        again = came & (self.n > 0)
        gap = np.where(again, day - self.last, 0.0)
        self.gaps += gap
        self.squares += gap**2
        smooth = np.where(np.isnan(self.smooth), gap, 0.8 * self.smooth + 0.2 * gap)
        self.smooth = np.where(again, smooth, self.smooth)
        self.n += came
        self.first = np.where(came & np.isnan(self.first), day, self.first)
        self.last = np.where(came, day, self.last)
        self.basket = np.where(came, spent, self.basket)
        self.spent += np.where(came, spent, 0)

    def features(self, day: int) -> np.ndarray:
        """(households, 22) for the households seen so far, others are NaN."""
        n_gaps = np.maximum(self.n - 1, 0)
        m0 = self.gaps.sum() / max(n_gaps.sum(), 1)
        elapsed, age = day - self.last, day - self.first
        mean = (self.gaps + 2 * m0) / (n_gaps + 2)
        variance = np.maximum(self.squares / np.maximum(n_gaps, 1) - (self.gaps / np.maximum(n_gaps, 1)) ** 2, 0)
        spread = np.where(n_gaps > 1, np.sqrt(variance) / np.maximum(self.gaps / np.maximum(n_gaps, 1), 1e-9), 1.0)
        smooth = np.where(np.isnan(self.smooth), mean, self.smooth)
        rates = [self.rate(half, age, m0)[0] for half in (7, 30, 90)]
        typical = self.spent / np.maximum(self.n, 1)
        tomorrow = (day + 1) % 7
        share = (self.weekday[:, tomorrow] + 1) / (self.weekday.sum(axis=1) + 7)
        columns = [np.log1p(elapsed), np.log(mean), np.log1p(elapsed / mean), np.minimum(elapsed / np.maximum(smooth, 0.5), 6)]
        columns += [np.minimum(spread, 4), *(np.log(rate) for rate in rates), np.log1p(age), np.log(np.maximum(self.n, 1))]
        columns += [(n_gaps < 3).astype(float), np.log((self.basket + 5) / (typical + 5)), np.log1p(np.maximum(typical, 0)), share]
        columns += [np.full(self.households, float(tomorrow == weekday)) for weekday in range(7)]
        return np.column_stack(columns)

    def rate(self, half: float, age: np.ndarray, m0: float) -> tuple[np.ndarray, np.ndarray]:
        exposed = half / math.log(2) * (1 - 2 ** (-(age + 1) / half))
        return (self.rates[int(half)] + 1) / (exposed + m0), exposed + m0


def bg_nbd(x: np.ndarray, recency: np.ndarray, age: np.ndarray) -> np.ndarray:
    """Maximum likelihood of Fader, Hardie and Lee's BG/NBD: log of (r, alpha, a, b)."""

    def cost(logs: np.ndarray) -> float:
        r, alpha, a, b = np.exp(logs)
        one = gammaln(r + x) - gammaln(r) + r * np.log(alpha)
        two = gammaln(a + b) + gammaln(b + x) - gammaln(b) - gammaln(a + b + x)
        three = -(r + x) * np.log(alpha + age)
        four = np.where(x > 0, np.log(a) - np.log(b + np.maximum(x, 1) - 1) - (r + x) * np.log(alpha + recency), -np.inf)
        return -float((one + two + np.logaddexp(three, four)).mean())

    tried = [minimize(cost, np.log(start), method="L-BFGS-B", bounds=[(-8, 8)] * 4) for start in ([1, 5, 0.1, 5], [1, 5, 1, 1])]
    return np.asarray(min(tried, key=lambda found: found.fun).x)


def bg_nbd_chance(logs: np.ndarray, x: np.ndarray, recency: np.ndarray, age: np.ndarray, ahead: int) -> np.ndarray:
    """Chance of at least one purchase in the next ``ahead`` days."""
    r, alpha, a, b = np.exp(logs)
    odds = np.where(x > 0, a / (b + np.maximum(x, 1) - 1) * ((alpha + age) / (alpha + recency)) ** (r + x), 0.0)
    return (1 - ((alpha + age) / (alpha + age + ahead)) ** (r + x)) / (1 + odds)


@benchmark("visits")
def visits(home: Path, runs: int) -> list[Row]:
    """Every third evening: does a household visit within 7, 14 or 30 days?"""
    data = panel()
    history, learner = HouseholdHistory(len(data.visits)), RhythmLearner()
    waiting: dict[int, tuple[np.ndarray, np.ndarray]] = {}
    rng, logs = np.random.default_rng(0), np.log([1.0, 5.0, 0.1, 5.0])
    names, horizons = ("ours", "BG/NBD", "own rate"), (7, 14, 30)
    error = {(name, ahead): np.zeros(history.households) for name in names for ahead in horizons}
    rows = {ahead: np.zeros(history.households) for ahead in horizons}
    scores: list[tuple[np.ndarray, np.ndarray]] = []
    for day in range(DAYS):
        history.add(day, data.visits[:, day], data.spent[:, day])
        age, recency = day - history.first, history.last - history.first
        known = np.flatnonzero(history.n > 0)
        if day in REFITS:
            logs = bg_nbd(history.n[known] - 1, recency[known], age[known])
        if day < 9 or day % 3:
            continue
        for place, ahead in enumerate(horizons):
            _learn_matured(learner, waiting, data.visits, day, place, ahead, rng)
        features = history.features(day)[known]
        waiting[day] = (known, features)
        if day < SCORED:
            continue
        weights = learner.weights(day)
        if weights is None:
            raise RuntimeError("no weights by 1 March: the learner saw too few rows")
        chances = np.asarray([predict(weights, row) for row in features.tolist()])
        m0 = history.gaps.sum() / max((history.n - 1).clip(0).sum(), 1)
        _, exposed = history.rate(90, age, m0)
        for place, ahead in enumerate(horizons):
            if day + ahead >= DAYS:
                continue
            truth = data.visits[known, day + 1 : day + 1 + ahead].any(axis=1)
            simple = 1 - (exposed / (exposed + ahead)) ** (history.rates[90] + 1)
            usual = bg_nbd_chance(logs, history.n[known] - 1, recency[known], age[known], ahead)
            for name, chance in (("ours", chances[:, place]), ("BG/NBD", usual), ("own rate", simple[known])):
                error[name, ahead][known] += (chance - truth) ** 2
            rows[ahead][known] += 1
            if ahead == 7:
                scores.append((chances[:, place], truth))
    return _visit_rows(error, rows, scores)


def _learn_matured(
    learner: RhythmLearner,
    waiting: dict[int, tuple[np.ndarray, np.ndarray]],
    came: np.ndarray,
    day: int,
    place: int,
    ahead: int,
    rng: np.random.Generator,
) -> None:
    """Decision days whose horizon ends in (day - 3, day], in random order."""
    for decided in [d for d in waiting if day - 3 < d + ahead <= day]:
        known, features = waiting[decided]
        truth = came[known, decided + 1 : decided + 1 + ahead].any(axis=1)
        for row in rng.permutation(len(known)):
            labels: list[bool | None] = [None, None, None]
            labels[place] = bool(truth[row])
            learner.learn(features[row].tolist(), labels)


def _visit_rows(
    error: dict[tuple[str, int], np.ndarray], rows: dict[int, np.ndarray], scores: list[tuple[np.ndarray, np.ndarray]]
) -> list[Row]:
    made = []
    for ahead, counts in rows.items():
        total, ours = counts.sum(), error["ours", ahead]
        for name in ("BG/NBD", "own rate"):
            low, high = interval(ours - error[name, ahead], counts)
            note = f"difference {(ours - error[name, ahead]).sum() / total:+.4f} [{low:+.4f}, {high:+.4f}]; {int(total):,} rows"
            label = f"visit in {ahead} d, Brier" + ("" if name == "BG/NBD" else f", {name}")
            made.append(Row(label, float(ours.sum() / total), float(error[name, ahead].sum() / total), "Brier", 1, name, "lower", note))
    chance, truth = (np.concatenate(parts) for parts in zip(*scores, strict=True))
    made.append(Row("visit in 7 d, AUC", auc(chance, truth), None, "AUC", note=f"calibration error {calibration(chance, truth):.4f}"))
    return made


def auc(chance: np.ndarray, truth: np.ndarray) -> float:
    """Area under the ROC curve; ties count half."""
    _, place, sizes = np.unique(chance, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(sizes) - (sizes - 1) / 2)[place]
    positives = truth.sum()
    return float((ranks[truth].sum() - positives * (positives + 1) / 2) / (positives * (len(truth) - positives)))


def calibration(chance: np.ndarray, truth: np.ndarray, bins: int = 20) -> float:
    """Expected calibration error over equally filled bins."""
    order = np.array_split(np.argsort(chance, kind="stable"), bins)
    return float(sum(abs(chance[part].mean() - truth[part].mean()) * len(part) for part in order) / len(chance))
