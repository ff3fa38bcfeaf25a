"""Whether a worker that has work does any: what the stages show of themselves, and the judgement of it.

Faust is known to stop committing, or to fetch no more, without an error
(faust-streaming/faust #596, #523). So each stage shows a figure that grows with
its work, and whether there is work left, and somebody outside of its event loop
looks at both (``mailtide.services.watchdog``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple


class Work(NamedTuple):
    """``figure`` grows whenever something was done; ``left``: there is more to do."""

    figure: int
    left: bool


Look = Callable[[], Mapping[str, Work]]
WORK: dict[str, Look] = {}  # by stage or group; each is asked from another thread


def work() -> dict[str, Work]:
    """What all stages of this process show, by ``stage`` or ``stage/partition``."""
    return {f"{stage}/{name}" if name else stage: found for stage, look in list(WORK.items()) for name, found in look().items()}


@dataclass
class Stalls:
    """Remembers since when each figure stands. ``patience``: seconds; a look more than ``gap`` after the last judges nothing.

    >>> stalls = Stalls(patience=10.0, gap=5.0)
    >>> [stalls.look(now, {"a": Work(7, True), "b": Work(7, False), "c": Work(now, True)}) for now in (0, 4, 8, 12)]
    [{}, {}, {}, {'a': 12}]
    >>> stalls.look(60, {"a": Work(7, True)})  # this process itself was stopped, or starved
    {}
    """

    patience: float
    gap: float
    _since: dict[str, tuple[int, float]] = field(default_factory=dict)
    _last: float = float("-inf")

    def look(self, now: float, found: Mapping[str, Work]) -> dict[str, float]:
        """Seconds without progress of each that has work and has stood for longer than the patience."""
        slept, self._last = now - self._last > self.gap, now
        before = {} if slept else self._since
        self._since = {}
        for name, one in found.items():
            figure, since = before.get(name, (one.figure, now))
            self._since[name] = (one.figure, since if figure == one.figure and one.left else now)
        return {name: now - since for name, (_, since) in self._since.items() if now - since > self.patience}
