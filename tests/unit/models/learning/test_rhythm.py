"""The visit model learns, publishes exactly what it knows, and resumes where it stopped."""

from __future__ import annotations

import math
import random

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.learning.rhythm import RhythmLearner, predict
from schemas.learning import RhythmWeights

Row = tuple[list[float], tuple[bool, bool, bool]]


def rows(count: int, seed: int = 1) -> list[Row]:
    """The first feature decides, the second is noise, the third is constant."""
    rng, found = random.Random(seed), []
    for _ in range(count):
        x = rng.gauss(50, 10)
        later = [rng.random() < 1 / (1 + math.exp(-(x - middle) / 4)) for middle in (55, 50, 45)]
        found.append(([x, rng.gauss(0, 1), 1.0], (later[0], later[0] or later[1], any(later))))
    return found


def taught(given_rows: list[Row]) -> RhythmLearner:
    learner = RhythmLearner()
    for features, labels in given_rows:
        assert learner.learn(features, labels)
    return learner


def published(learner: RhythmLearner) -> RhythmWeights:
    found = learner.weights(1)
    assert found is not None
    return found


def test_learns_which_feature_matters() -> None:
    weights = published(taught(rows(4000)))
    low, high = predict(weights, [35.0, 0.0, 1.0]), predict(weights, [70.0, 0.0, 1.0])
    assert low[0] < 0.1 and high[0] > 0.9
    assert low[0] < low[1] < low[2]


def test_published_weights_say_what_river_says() -> None:
    learner = taught(rows(500))
    weights = published(learner)
    for features, _ in rows(20, seed=5):
        for horizon, row, intercept in zip(learner._horizons, weights.weights, weights.intercepts, strict=True):
            theirs = horizon.model.predict_proba_one(horizon.scaler.transform_one(dict(enumerate(features))))[True]
            ours = 1 / (1 + math.exp(-intercept - sum(w * x for w, x in zip(row, features, strict=True))))
            assert ours == pytest.approx(theirs, rel=1e-9)


def test_nothing_is_published_before_enough_was_learned() -> None:
    assert RhythmLearner().weights(1) is None
    assert taught(rows(199)).weights(1) is None
    assert taught(rows(200)).weights(1) is not None


def test_a_restart_changes_nothing() -> None:
    found = rows(600)
    half = RhythmLearner.from_bytes(taught(found[:250]).to_bytes())
    for features, labels in found[250:]:
        half.learn(features, labels)
    assert half.weights(7) == taught(found).weights(7)
    assert half.to_bytes() == taught(found).to_bytes()
    assert RhythmLearner.from_bytes(RhythmLearner().to_bytes()).seen == 0


def test_a_restart_refuses_what_is_no_state() -> None:
    with pytest.raises(msgspec.DecodeError):
        RhythmLearner.from_bytes(b"\x93junk")


def test_unknown_labels_teach_only_the_others() -> None:
    learner = RhythmLearner()
    learner.learn([1.0], [True, None, None])
    assert [horizon.seen for horizon in learner._horizons] == [1, 0, 0]
    assert RhythmLearner.from_bytes(learner.to_bytes()).to_bytes() == learner.to_bytes()


def test_a_row_that_is_none_is_left_out() -> None:
    learner = taught(rows(10))
    assert not learner.learn([math.nan, 0.0, 1.0], (True, True, True))
    assert learner.seen == 10


def test_other_features_begin_anew() -> None:
    learner = taught(rows(300))
    assert learner.learn([1.0, 2.0], (True, True, True))
    assert learner.seen == 1


@given(st.lists(st.floats(-1e9, 1e9), min_size=3, max_size=3))
def test_any_values_give_chances_that_do_not_fall_with_the_horizon(values: list[float]) -> None:
    week, fortnight, month = predict(WEIGHTS, values)
    assert 0.0 <= week <= fortnight <= month <= 1.0


WEIGHTS = published(taught(rows(300)))
