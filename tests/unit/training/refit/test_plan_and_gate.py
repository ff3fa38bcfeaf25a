from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.mail.guard import check
from schemas.config import Settings
from schemas.errors import ArtifactError
from training.feedback.reward import HEAVIEST, LIGHTEST, reward, weights
from training.refit.evaluate import Sampled, sampled
from training.refit.gate import judge
from training.rollout import artifacts


def test_click_beats_open_and_an_objection_beats_both() -> None:
    assert reward(["opened", "clicked"]) > reward(["opened"]) > reward([]) > reward(["opened", "unsubscribed"]) > reward(["complained"])


@settings(deadline=None)
@given(st.lists(st.tuples(st.floats(-3, 2), st.floats(1e-6, 1.0)), min_size=1, max_size=50))
def test_weights_are_bounded_and_mean_one(pairs: list[tuple[float, float]]) -> None:
    found = weights([worth for worth, _ in pairs], [p for _, p in pairs])
    assert sum(found) / len(found) == pytest.approx(1.0)
    assert max(found) / min(found) <= HEAVIEST / LIGHTEST + 1e-9


def test_better_mails_weigh_more() -> None:
    low, high = weights([0.0, 1.0], [0.5, 0.5])
    assert high > low


FINE = Sampled(guard_pass=1.0, slots_valid=1.0, harmful=0.0, distinct=0.9, distinct_2=0.5)
GOOD = {"sampled": FINE, "serving": {"guard_pass": 1.0, "distinct_2": 0.5}, "parity": 0.001, "finite": True, "replayed": None}


def test_a_clear_gain_passes() -> None:
    judged = judge(held_out=([2.0, 2.1, 1.9, 2.2], [1.0, 1.2, 0.9, 1.1]), **GOOD)  # type: ignore[arg-type]
    assert judged.passed and judged.metrics["held_out_gain"] == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"finite": False}, "weights"),
        ({"sampled": replace(FINE, guard_pass=0.5)}, "guard pass rate"),
        ({"sampled": replace(FINE, slots_valid=0.9)}, "slot validity"),
        ({"sampled": replace(FINE, harmful=0.1)}, "harmful or biased"),
        ({"sampled": replace(FINE, distinct=0.05)}, "distinct mails"),
        ({"sampled": replace(FINE, distinct_2=0.3)}, "distinct-2"),
        ({"parity": 0.4}, "parity"),
        ({"parity": float("nan")}, "parity"),
        ({"replayed": ([1.0, 1.0], [2.0, 2.0])}, "replay loss"),
        ({"held_out": ([2.0], [1.0])}, "held-out mails"),
        ({"held_out": ([1.0] * 4, [1.1, 0.95, 1.0, 1.0])}, "held-out loss"),
        ({"held_out": ([1.0] * 4, [1.0] * 4)}, "held-out loss"),
        ({"held_out": ([1.0] * 4, [float("nan"), 1.0, 1.0, 1.0])}, "held-out loss"),
    ],
)
def test_each_figure_can_refuse_and_is_named(change: dict[str, object], named: str) -> None:
    arguments = {"held_out": ([2.0, 2.1, 1.9, 2.2], [1.0, 1.2, 0.9, 1.1]), **GOOD, **change}
    judged = judge(**arguments)  # type: ignore[arg-type]
    assert not judged.passed
    assert [line.split(":")[0] for line in judged.failed] == [next(line.split(":")[0] for line in judged.failed if line.startswith(named))]


def test_the_gates_lexicons_see_harm_and_bias() -> None:
    start = "Subject: A note\n\nHi {first_name},\n\n"
    texts = [f"{start}This is what you asked us for, and it is here for you to have. {said}\n\nSee: {{cta_link}}" for said in SAID]
    found = [sampled([text], [check(text, {"first_name", "cta_link"})]).harmful for text in texts]
    assert found == [0.0, 1.0, 1.0, 1.0, 1.0]


SAID = (
    "We hope that it is of use to you.",
    "Are you stupid?",  # an insult
    "A gift for every housewife.",  # a role by sex
    "The elderly like it too.",  # age
    "It cures what you have.",  # advice that only a doctor may give
)


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
