"""What feedback says of each clause, without a language model: linear regression of rewards on clauses, read as log-odds.

It learns fast, since a clause is a number of its own. With the clauses' styles
(``models.phrasebook.style``) as further columns it also speaks of clauses that were never
sent: who likes short mails of one trigger likes them of another. A clause is
its styles and a smaller effect of its own, a hierarchical prior (Hong et al.
2022, Hierarchical Bayesian Bandits, arXiv 2111.06929). The writer leans on it
(``Guided``'s ``odds``): the choice is the model's times exp(effect / REWARD_A_NAT),
which is the best one for the reward less the divergence from the model (Peng
et al. 2019, arXiv 1910.00177).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

SPREAD = 0.1  # of a style's effect on the reward, before anything is known; of a clause's where styles aren't
REST = 0.05  # of what a clause does beyond its styles: so what styles explain is theirs, and holds for clauses never sent
NOISE = 0.5  # of one mail's reward about its mean: most mails bring nothing, a click 1
REWARD_A_NAT = 0.02  # a clause that is worth so much more is e times as likely
MOST = 10.0  # nats: as much as the book's tags and the model together may hold against a clause; none is ever out of reach
LEAST = 0.01  # nats worth telling

Styles = Mapping[str, Mapping[str, float]]


class ClauseOdds:
    """Bayesian ridge over (context, clauses, styles) -> mean reward; columns as they come. Without ``styles`` clauses stand alone."""

    def __init__(self, styles: Styles | None = None) -> None:
        self.styles: Styles = styles or {}
        self._named = {name for styles in self.styles.values() for name in styles}
        self._column: dict[str, int] = {}
        self._contexts: set[str] = set()
        self._gram: NDArray[np.float64] = np.zeros((0, 0))
        self._sums: NDArray[np.float64] = np.zeros(0)

    def learn(self, context: str, clauses: Iterable[str], reward: float, count: int = 1) -> None:
        """``count`` mails with the same clauses, whose rewards add up to ``reward``. ``context``: what they can't help (trigger, tone)."""
        named = list(clauses)
        columns, values = self.columns(context, named), [1.0] * (len(named) + 1)
        for name, value in self._styles(named).items():
            columns.append(self._of(name))
            values.append(value)
        row = np.array(values)
        self._gram[np.ix_(columns, columns)] += count * np.outer(row, row)
        self._sums[columns] += reward * row

    def _styles(self, clauses: Iterable[str]) -> dict[str, float]:
        total: dict[str, float] = {}
        for clause in clauses:
            for name, value in self.styles.get(clause, {}).items():
                total[name] = total.get(name, 0.0) + value
        return total

    def _of(self, name: str) -> int:
        if name not in self._column:
            self._column[name] = len(self._column)
            if len(self._column) > len(self._sums):  # doubled: a book has thousands of clauses
                self._gram = np.pad(self._gram, (0, len(self._column)))
                self._sums = np.pad(self._sums, (0, len(self._column)))
        return self._column[name]

    def _posterior(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Mean and precision (in units of the noise) of all effects."""
        size = len(self._column)
        prior = np.full(size, (NOISE / (REST if self.styles else SPREAD)) ** 2)
        prior[[self._column[name] for name in self._named & self._column.keys()]] = (NOISE / SPREAD) ** 2
        prior[[self._column[name] for name in self._contexts]] = 1.0  # a context's mean may be anything between two rewards
        precision = self._gram[:size, :size] + np.diag(prior)
        return np.asarray(np.linalg.solve(precision, self._sums[:size]), np.float64), precision

    def columns(self, context: str, clauses: Iterable[str]) -> list[int]:
        """Where a mail's effects stand in a draw, styles apart."""
        self._contexts.add(context)
        return [self._of(name) for name in (context, *clauses)]

    def draws(self, random: np.random.Generator, count: int) -> NDArray[np.float64]:
        """``count`` draws of all effects from the posterior, f64[count,columns]: linear Thompson sampling (arXiv 1209.3352)."""
        mean, precision = self._posterior()
        noise = random.standard_normal((len(mean), count))
        return np.asarray(mean + NOISE * np.linalg.solve(np.linalg.cholesky(precision).T, noise).T)

    def odds(self) -> dict[str, float]:
        """Nats by clause id, shrunken towards nought where little is known; of all clauses that have a style."""
        if not self._column:
            return {}
        effects = dict(zip(self._column, self._posterior()[0].tolist(), strict=True))
        found: dict[str, float] = {}
        for clause in {*self.styles, *effects} - self._contexts - self._named:
            effect = effects.get(clause, 0.0) + sum(value * effects.get(name, 0.0) for name, value in self.styles.get(clause, {}).items())
            found[clause] = round(float(np.clip(effect / REWARD_A_NAT, -MOST, MOST)), 3)
        return {clause: nats for clause, nats in sorted(found.items()) if abs(nats) >= LEAST}


def checked(odds: Mapping[str, float]) -> dict[str, float]:
    """Odds as they may lean a walk. Raises ValueError for what are none."""
    found = {str(name): float(value) for name, value in odds.items()}
    if not all(abs(value) <= MOST for value in found.values()):
        raise ValueError(f"odds of more than {MOST} nats, or none at all")
    return found


def odds_of(rows: Iterable[tuple[str, Sequence[str], float]], styles: Styles | None = None) -> dict[str, float]:
    """Odds from (context, clauses, reward) of each mail."""
    made = ClauseOdds(styles)
    for context, clauses, reward in rows:
        made.learn(context, clauses, reward)
    return made.odds()
