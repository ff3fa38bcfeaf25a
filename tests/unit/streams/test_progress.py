"""When a worker counts as stuck."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from faust.types import TP

from streams.faust.app import BatchApp
from streams.progress import WORK, Stalls, Work, work


@pytest.mark.parametrize(
    ("figures", "left", "stuck"),
    [
        ([5, 5, 5, 5], True, [False, False, False, True]),
        ([5, 5, 5, 5], False, [False] * 4),
        ([5, 6, 7, 8], True, [False] * 4),
        ([5, 5, 6, 6], True, [False] * 4),
        ([5, 5, 4, 4], True, [False] * 4),  # another queue of the same name: a new beginning
    ],
)
def test_no_progress_with_work_left(figures: list[int], left: bool, stuck: list[bool]) -> None:
    stalls = Stalls(patience=10.0, gap=5.0)
    assert [bool(stalls.look(4.0 * turn, {"a": Work(figure, left)})) for turn, figure in enumerate(figures)] == stuck


def test_idleness_before_the_work_does_not_count() -> None:
    stalls = Stalls(patience=10.0, gap=50.0)
    for now in (0, 20, 40):
        assert stalls.look(now, {"a": Work(1, False)}) == {}
    assert stalls.look(49, {"a": Work(1, True)}) == {}
    assert stalls.look(51, {"a": Work(1, True)}) == {"a": 11}


def test_who_slept_judges_nobody() -> None:
    stalls = Stalls(patience=10.0, gap=5.0)
    stalls.look(0.0, {"a": Work(1, True)})
    assert stalls.look(500.0, {"a": Work(1, True)}) == {}


def _lane(partition: int, **more: Any) -> SimpleNamespace:
    known = {"ready": True, "draining": False, "behind": False, "waiting": (), "open": [], "figure": 3, "committed": 10, "next": 10}
    return SimpleNamespace(tp=TP("t", partition), **(known | more))


@pytest.mark.parametrize(
    ("queue", "handling", "commits"),
    [
        ({}, False, False),
        ({"behind": True}, True, False),  # the broker has more than was fetched
        ({"waiting": (1,)}, True, False),
        ({"open": [SimpleNamespace(first=12)]}, True, False),
        ({"next": 11}, False, True),  # done, and not committed
        ({"next": 30, "open": [SimpleNamespace(first=10)]}, True, False),  # a later batch was done first: nothing to commit yet
        ({"next": 0, "committed": 0}, False, False),
    ],
)
def test_what_a_partition_shows(queue: dict[str, Any], handling: bool, commits: bool) -> None:
    app: Any = SimpleNamespace(queues={1: _lane(1, **queue), 2: _lane(2, ready=False), 3: _lane(3, draining=True)})
    found = BatchApp.work(app)
    assert {name: one.left for name, one in found.items()} == {"t/1": handling, "t/1 commits": commits}


def test_stages_are_told_apart() -> None:
    WORK["x"] = lambda: {"": Work(1, True), "0": Work(2, False)}
    try:
        assert {name: one for name, one in work().items() if name.startswith("x")} == {"x": Work(1, True), "x/0": Work(2, False)}
    finally:
        del WORK["x"]
