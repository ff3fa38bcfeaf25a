"""A partition's timers: who is due, in memory, rebuilt from the states when the partition is taken over."""

from __future__ import annotations

import heapq
import math


class Schedule:
    """The next timer of each customer, seconds since the epoch; inf means none.

    A customer who comes back puts their timer off at each event: the heap keeps
    the entry that it has and looks at it again when it surfaces, so that it
    holds about one entry a customer, however many events there are.
    """

    def __init__(self) -> None:
        self._next: dict[str, float] = {}
        self._queued: dict[str, float] = {}  # the customer's entry in the heap that counts; never later than the timer
        self._heap: list[tuple[float, str]] = []

    def __len__(self) -> int:
        return len(self._next)

    def set(self, customer: str, at: float) -> None:
        """Replace the customer's timer."""
        if math.isinf(at):
            self._next.pop(customer, None)
            return
        self._next[customer] = at
        if at < self._queued.get(customer, math.inf):
            self._queued[customer] = at
            heapq.heappush(self._heap, (at, customer))

    def next(self) -> float:
        """The earliest timer; inf where there is none."""
        heap = self._heap
        while heap:
            at, customer = heap[0]
            if self._queued.get(customer) != at:  # an earlier entry has taken its place
                heapq.heappop(heap)
                continue
            due = self._next.get(customer)
            if due == at:
                return at
            if due is None:
                heapq.heappop(heap)
                del self._queued[customer]
            else:  # put off since
                heapq.heapreplace(heap, (due, customer))
                self._queued[customer] = due
        return math.inf

    def due(self, now: float, limit: int) -> list[str]:
        """Take up to ``limit`` customers whose timer has come, earliest first; each must be ``set`` again afterwards."""
        taken: list[str] = []
        while len(taken) < limit and self.next() <= now:
            if not self._heap:  # now is inf
                break
            _at, customer = heapq.heappop(self._heap)
            del self._next[customer], self._queued[customer]
            taken.append(customer)
        return taken
