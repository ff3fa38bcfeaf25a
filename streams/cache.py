"""The states met last, so that a customer who comes back within the hour needs no look into RocksDB."""

from __future__ import annotations


class StateCache:
    """At most ``most`` bytes of states; what was not asked for longest goes first."""

    def __init__(self, most: int) -> None:
        self._most, self._size = most, 0
        self._states: dict[str, bytes] = {}

    def get(self, customer: str) -> bytes | None:
        """The state that was put last, unless it had to go."""
        state = self._states.pop(customer, None)
        if state is not None:
            self._states[customer] = state
        return state

    def put(self, customer: str, state: bytes) -> None:
        """In place of the one before."""
        states = self._states
        self._size += len(state) - len(states.pop(customer, b""))
        states[customer] = state
        while self._size > self._most:
            self._size -= len(states.pop(next(iter(states))))
