"""Clusters find the groups, keep their names, and resume where they stopped."""

from __future__ import annotations

import math
import random

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.learning import clusters
from models.learning.clusters import ClusterLearner, assign, silhouette
from models.learning.portrait import describe
from schemas.release import Cluster, Snapshot

CENTRES = {  # log gap, log basket, entropy, coupon share, own-brand share
    "coupons": (1.8, 3.5, 2.0, 0.4, 0.2),
    "rare": (3.2, 2.7, 1.0, 0.02, 0.2),
    "own": (2.1, 2.8, 1.5, 0.02, 0.6),
    "broad": (1.2, 3.3, 3.2, 0.05, 0.25),
    "stock-up": (2.5, 4.6, 2.8, 0.05, 0.25),
}


def people(count: int, seed: int = 1) -> list[tuple[str, list[float], str]]:
    rng, kinds = random.Random(seed), list(CENTRES)
    found = []
    for n in range(count):
        kind = kinds[rng.randrange(len(kinds))]
        found.append((f"u{n}", [rng.gauss(x, 0.05 * max(1, abs(x)) ** 0.5) for x in CENTRES[kind]], kind))
    return found


def taught(rows: list[tuple[str, list[float], str]], seed: int = 0) -> ClusterLearner:
    learner = ClusterLearner(seed=seed)
    for customer, vector, _ in rows:
        learner.learn(customer, vector)
    return learner


def published(learner: ClusterLearner, epoch: int = 1) -> Snapshot:
    found = learner.snapshot(epoch, 1_700_000_000.0)
    assert found is not None
    return found


def test_finds_the_groups() -> None:
    rows = people(1500)
    snapshot = published(taught(rows))
    assert len(snapshot.clusters) == 5
    kinds: dict[str, set[str]] = {}
    for _, vector, kind in rows:
        kinds.setdefault(kind, set()).add(assign(snapshot, vector, None))
    assert all(len(ids) == 1 for ids in kinds.values())
    assert len(set().union(*kinds.values())) == 5
    assert snapshot.quality["silhouette"] > 0.5
    assert sum(cluster.size for cluster in snapshot.clusters) == 1500


def test_a_small_replay_gets_clusters_early() -> None:
    rows = people(40)
    learner = taught(rows[:20])
    assert learner.snapshot(1, 0.0) is None
    for _ in range(3):
        for customer, vector, _kind in rows:
            learner.learn(customer, vector)
    assert learner.snapshot(1, 0.0) is not None


def test_descriptions_are_readable_and_differ() -> None:
    rows = people(1500)
    snapshot = published(taught(rows))
    by_kind = {kind: assign(snapshot, centre, None) for kind, centre in CENTRES.items()}
    said = {cluster.id: cluster.description for cluster in snapshot.clusters}
    assert said[by_kind["coupons"]].startswith("coupon users, ")
    assert said[by_kind["own"]].startswith("own-brand buyers, a small basket every 8 days")
    assert said[by_kind["stock-up"]].startswith("stock-up shoppers, a big basket every 12 days")
    assert len(set(said.values())) == 5


def test_names_stay_through_fresh_fits() -> None:
    rows = people(1200)
    learner = taught(rows[:300])
    before = published(learner)
    names = {kind: assign(before, centre, None) for kind, centre in CENTRES.items()}
    for customer, vector, _ in rows * 5:
        learner.learn(customer, vector)
    after = published(learner, 2)
    assert learner.state.adopted > 1
    assert {kind: assign(after, centre, None) for kind, centre in CENTRES.items()} == names
    assert after.parent == before.snapshot_id


def test_a_group_that_moves_is_followed_and_a_new_group_is_born_with_a_parent() -> None:
    rows = people(1200)
    learner = taught(rows)
    before = {cluster.id for cluster in published(learner).clusters}
    far = [(f"n{n}", [0.5, 5.5, 0.2, 0.9, 0.9], "new") for n in range(1800)]
    for customer, vector, _ in [*far, *far]:
        learner.learn(customer, vector)
    after = published(learner, 2)
    born = assign(after, far[0][1], None)
    found = next(cluster for cluster in after.clusters if cluster.id == born)
    assert math.dist(list(found.raw.values()), far[0][1]) < 0.2
    if born not in before:
        assert found.parent in before


def test_same_arrivals_same_clusters_and_a_restart_changes_nothing() -> None:
    rows = people(1300) + people(1300, 2)
    whole = taught(rows, seed=3)
    assert taught(rows, seed=3).to_bytes() == whole.to_bytes()
    half = taught(rows[:777], seed=3)
    half = ClusterLearner.from_bytes(half.to_bytes())
    for customer, vector, _ in rows[777:]:
        half.learn(customer, vector)
    assert published(half) == published(whole)


def test_a_restart_refuses_what_is_no_state() -> None:
    with pytest.raises(msgspec.DecodeError):
        ClusterLearner.from_bytes(b"\x93junk")


def test_hysteresis_keeps_a_customer_between_two_centres() -> None:
    def cluster(name: str, x: float) -> Cluster:
        return Cluster(id=name, size=1, description="", centre=(x, 0.0), raw={})

    snapshot = Snapshot("s1", 1, "", ("a", "b"), (0.0, 0.0), (1.0, 1.0), (cluster("c0", -1.0), cluster("c1", 1.0)), 2)
    assert assign(snapshot, (0.05, 0.0), None) == "c1"
    assert assign(snapshot, (0.05, 0.0), "c0") == "c0"
    assert assign(snapshot, (0.5, 0.0), "c0") == "c1"
    assert assign(snapshot, (0.05, 0.0), "c9") == "c1"  # a cluster that died


@pytest.mark.parametrize("bad", [[math.nan] * 5, [math.inf, 0, 0, 0, 0], [1.0, 2.0], []])
def test_a_vector_that_is_none_is_left_out(bad: list[float]) -> None:
    learner = taught(people(200))
    seen = learner.state.learned
    assert learner.learn("x", bad) is None
    assert learner.state.learned == seen


def test_one_point_many_times_is_one_cluster() -> None:
    learner = ClusterLearner()
    for n in range(200):
        learner.learn(f"u{n}", [1.0, 2.0, 3.0, 0.0, 0.0])
    assert [cluster.size for cluster in published(learner).clusters] == [200]


def test_an_objector_leaves_the_sample() -> None:
    learner = taught(people(200))
    learner.forget("u7")
    learner.forget("nobody")
    assert "u7" not in learner.state.sample
    assert sum(cluster.size for cluster in published(learner).clusters) == 199


def test_the_sample_stays_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clusters, "SAMPLE", 150)
    learner = taught(people(600))
    assert len(learner.state.sample) == 150 == len(learner._names)


@given(
    st.lists(st.tuples(st.integers(0, 50), st.lists(st.floats(-1e6, 1e6), min_size=5, max_size=5)), min_size=1, max_size=12),
    st.integers(0, 9),
)
def test_any_vectors_give_valid_clusters(rows: list[tuple[int, list[float]]], seed: int) -> None:
    learner = ClusterLearner(seed=seed)
    for turn in range(130):
        customer, vector = rows[turn % len(rows)]
        learner.learn(f"u{customer}-{turn % 7}", vector)
    snapshot = learner.snapshot(1, 0.0)
    if snapshot is not None:
        ids = [cluster.id for cluster in snapshot.clusters]
        assert len(set(ids)) == len(ids) <= 5
        assert all(math.isfinite(x) and abs(x) <= 3.0 for cluster in snapshot.clusters for x in cluster.centre)
        assert all(assign(snapshot, vector, None) in ids for _, vector in rows)
        assert ClusterLearner.from_bytes(learner.to_bytes()).snapshot(1, 0.0) == snapshot


def test_silhouette_of_clear_and_single_groups() -> None:
    points = np.asarray([[0.0], [0.1], [9.0], [9.1]])
    assert silhouette(points, np.asarray([0, 0, 1, 1])) > 0.97
    assert silhouette(points, np.asarray([0, 0, 0, 0])) == 0.0


def test_regular_shoppers_when_nothing_stands_out() -> None:
    assert describe([{}], [{"log_gap": 0.0}]) == ["regular shoppers, a medium basket every day"]
    assert describe([{"log_gap": 1.0}], [{"log_gap": math.log(90)}]) == ["occasional shoppers, a medium basket every 3 months"]
