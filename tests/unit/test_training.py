from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.config import Settings
from schemas.errors import ArtifactError
from training import artifacts
from training.gate import judge
from training.reward import HEAVIEST, LIGHTEST, reward, weights


def test_click_beats_open_and_an_objection_beats_both() -> None:
    assert reward(["opened", "clicked"]) > reward(["opened"]) > reward([]) > reward(["opened", "unsubscribed"]) > reward(["complained"])


@given(st.lists(st.tuples(st.floats(-3, 2), st.floats(1e-6, 1.0)), min_size=1, max_size=50))
def test_weights_are_bounded_and_mean_one(pairs: list[tuple[float, float]]) -> None:
    found = weights([worth for worth, _ in pairs], [p for _, p in pairs])
    assert sum(found) / len(found) == pytest.approx(1.0)
    assert max(found) / min(found) <= HEAVIEST / LIGHTEST + 1e-9


def test_better_mails_weigh_more() -> None:
    low, high = weights([0.0, 1.0], [0.5, 0.5])
    assert high > low


GOOD = {"guard_pass": 1.0, "serving_guard_pass": 1.0, "distinct": 0.9, "parity": 0.001, "finite": True, "replayed": None}


def test_a_clear_gain_passes() -> None:
    assert judge(held_out=([2.0, 2.1, 1.9, 2.2], [1.0, 1.2, 0.9, 1.1]), **GOOD).passed  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"finite": False}, "weights"),
        ({"guard_pass": 0.5}, "guard"),
        ({"distinct": 0.05}, "distinct"),
        ({"parity": 0.4}, "parity"),
        ({"replayed": ([1.0, 1.0], [2.0, 2.0])}, "replay"),
        ({"held_out": ([1.0, 1.0], [1.1, 0.95])}, "held-out"),
    ],
)
def test_each_figure_can_refuse(change: dict[str, object], named: str) -> None:
    arguments = {"held_out": ([2.0, 2.1], [1.0, 1.2]), **GOOD, **change}
    judged = judge(**arguments)  # type: ignore[arg-type]
    assert not judged.passed
    assert any(line.startswith(named) for line in judged.failed)


def test_artifacts_are_named_by_their_content_and_checked(tmp_path: Path) -> None:
    settings = Settings(home=str(tmp_path))
    url, digest = artifacts.put(settings, b"weights")
    assert artifacts.put(settings, b"weights") == (url, digest)
    assert artifacts.get(url, digest) == b"weights"
    Path(url).write_bytes(b"weigh")
    with pytest.raises(ArtifactError, match="torn or replaced"):
        artifacts.get(url, digest)
    with pytest.raises(ArtifactError, match="can't be read"):
        artifacts.get(url + "x", digest)
