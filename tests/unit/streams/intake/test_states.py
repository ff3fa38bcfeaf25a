"""A partition's states: whoever asks gets the newest, and what a kill leaves in the store is a moment that the changelog knows."""

from __future__ import annotations

import logging
from collections import deque
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.errors import StoreError
from streams.intake.states import States
from streams.intake.store import Clock, Store

COMPUTE = st.sets(st.sampled_from("abcdef"), min_size=1)
STEPS = st.lists(COMPUTE | st.just("land"), max_size=40)


@settings(deadline=None, max_examples=60)
@given(STEPS, st.integers(1, 30))
def test_the_newest_is_found_and_a_kill_leaves_a_moment_of_the_changelog(
    tmp_path_factory: pytest.TempPathFactory, steps: list[set[str] | str], behind: int
) -> None:
    folder = tmp_path_factory.mktemp("states")
    states = States(Store(folder / "0"), behind)
    newest: dict[str, bytes] = {}
    flying: deque[dict[str, bytes]] = deque()
    moments: list[dict[str, bytes]] = [{}]
    for number, step in enumerate(steps):
        if isinstance(step, str):
            if flying:
                made = flying.popleft()
                moments.append(moments[-1] | made)
                states.logged(made, Clock(len(moments) - 1, 0.0), len(moments) - 1)
        else:
            made = {customer: f"{customer}{number}".encode() for customer in sorted(step)}
            states.keep(made)
            flying.append(made)
            newest |= made
        assert states.of("abcdef") == newest
    states.store.close()  # as a kill leaves it: nothing of what this process alone had
    found = Store(folder / "0")
    assert dict(found.items()) == moments[found.changelog]
    assert found.clock == Clock(found.changelog, 0.0)
    found.close()


def test_the_store_lags_by_no_more_than_it_may_and_a_close_brings_it_up(tmp_path: Path) -> None:
    states = States(Store(tmp_path / "0"), behind=4)
    for place, customer in enumerate("abc", start=1):
        states.keep({customer: b"12"})
        states.logged({customer: b"12"}, Clock(place, 1.0), place)
    assert states.store.changelog == 2
    states.close()
    store = Store(tmp_path / "0")
    assert (sorted(dict(store.items())), store.changelog, store.clock) == (["a", "b", "c"], 3, Clock(3, 1.0))
    store.close()


def test_a_full_disk_ends_the_work_with_its_name_and_a_close_with_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    states = States(Store(tmp_path / "0"), behind=1)

    def full(*_: object) -> None:
        raise StoreError("no space: free some space")

    monkeypatch.setattr(states.store, "write", full)
    states.keep({"a": b"1"})
    with pytest.raises(StoreError, match="free some space"):
        states.logged({"a": b"1"}, Clock(1, 1.0), 1)
    with caplog.at_level(logging.WARNING):
        states.close()
    assert "free some space" in caplog.text
    Store(tmp_path / "0").close()  # let go of, all the same
