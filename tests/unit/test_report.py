"""What the demo says when little came of it."""

from __future__ import annotations

import random

import pytest

from mailtide.report import missing
from models.clusters import FEATURES, FIRST, ClusterLearner


@pytest.mark.parametrize(
    ("clusters", "releases", "taught", "said"),
    [
        (0, 0, 0, ["no clusters: the first come with 100 feature vectors of 10 customers, and 6 were replayed", "no releases: each is"]),
        (5, 0, 11, ["no releases: a refit needs 12 mails to one cluster, and the most were 11"]),
        (5, 0, 12, ["no releases: no refit passed the gate in time"]),
        (5, 1, 12, []),
    ],
)
def test_a_replay_that_came_to_little_says_why(clusters: int, releases: int, taught: int, said: list[str]) -> None:
    lines = missing(6, clusters, releases, taught, 12)
    assert len(lines) == len(said)
    assert all(line.startswith(begin) for line, begin in zip(lines, said, strict=True)), lines


@pytest.mark.parametrize(("customers", "clusters"), [(9, 0), (10, 5)])
def test_so_many_customers_it_takes(customers: int, clusters: int) -> None:
    learner, chance = ClusterLearner(), random.Random(1)
    for number in range(2 * FIRST):
        learner.learn(f"c{number % customers}", [chance.gauss(0.0, 1.0) for _ in FEATURES])
    assert len(learner.state.centres) == clusters
