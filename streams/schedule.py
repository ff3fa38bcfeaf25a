"""A partition's timers: who is due, in memory, rebuilt from the states when the partition is taken over."""

from __future__ import annotations

import heapq
import math


class Schedule:
    """The next timer of each customer, seconds since the epoch; inf means none."""

    def __init__(self) -> None:
        self._next: dict[str, float] = {}
        self._heap: list[tuple[float, str]] = []

    def __len__(self) -> int:
        return len(self._next)

    def set(self, customer: str, at: float) -> None:
        """Replace the customer's timer."""
        if math.isinf(at):
            self._next.pop(customer, None)
        elif self._next.get(customer) != at:
            self._next[customer] = at
            heapq.heappush(self._heap, (at, customer))

    def next(self) -> float:
        """The earliest timer; inf where there is none."""
        while self._heap and self._next.get(self._heap[0][1]) != self._heap[0][0]:
            heapq.heappop(self._heap)
        return self._heap[0][0] if self._heap else math.inf

    def due(self, now: float, limit: int) -> list[str]:
        """Take up to ``limit`` customers whose timer has come, earliest first; each must be ``set`` again afterwards."""
        taken: list[str] = []
        while self._heap and self._heap[0][0] <= now and len(taken) < limit:
            at, customer = heapq.heappop(self._heap)
            if self._next.get(customer) == at:  # else it was replaced since: the heap keeps old entries until they surface
                del self._next[customer]
                taken.append(customer)
        return taken
