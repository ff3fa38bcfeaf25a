"""A partition's newest states, whatever has them: this process alone, the changelog too, or the store as well.

The store lags behind the changelog by some megabytes: a customer who comes back
within them is written to RocksDB once, and needs no look into it. What a kill
takes from here stands in the changelog, from the store's own place on.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping

from schemas.errors import StoreError
from streams.intake.store import CLOCK, Clock, Store

BEHIND = 4 << 20  # bytes of states that the store may lag behind: some 5,000 customers with a year behind them

log = logging.getLogger(__name__)


class States:
    """The states of one partition over its ``Store``. At most twice ``behind`` bytes of them stay at hand, and what is on its way."""

    def __init__(self, store: Store, behind: int | None = None) -> None:
        self.store = store
        self._behind = BEHIND if behind is None else behind
        self._newest: dict[str, bytes] = {}  # computed, and not in the store yet
        self._recent: dict[str, bytes] = {}  # what the store was given last
        self._logged: dict[str, bytes] = {}  # of ``_newest``: in the changelog
        self._clock, self._place = store.clock, store.changelog

    def of(self, customers: Iterable[str]) -> dict[str, bytes]:
        """The newest state of each customer that has one."""
        newest, recent = self._newest.get, self._recent.get
        found: dict[str, bytes] = {}
        asked: list[str] = []
        for customer in customers:
            state = newest(customer) or recent(customer)
            if state is None:
                asked.append(customer)
            else:
                found[customer] = state
        if asked:
            found.update(self.store.get_many(asked))
        return found

    def keep(self, states: Mapping[str, bytes]) -> None:
        """From now on these are the newest."""
        self._newest.update(states)

    def logged(self, states: Mapping[str, bytes], clock: Clock, place: int) -> None:
        """The changelog has these, and the clock, before its offset ``place``. Raises StoreError where a write is due and fails."""
        self._logged.update(states)
        self._clock, self._place = clock, place
        if sum(map(len, self._logged.values())) >= self._behind:
            self.write()

    def write(self) -> None:
        """Bring the store up to the changelog, states, clock and place in one write. Raises StoreError."""
        records: dict[bytes, bytes | None] = {customer.encode(): state for customer, state in self._logged.items()}
        self.store.write(dict(sorted(records.items())) | {CLOCK: self._clock.packed()}, self._place)
        for customer, state in self._logged.items():
            if self._newest[customer] is state:
                del self._newest[customer]
        self._recent, self._logged = self._logged, {}

    def close(self) -> None:
        """Bring the store up and let go of it. What a full disk keeps from being written stands in the changelog."""
        try:
            if self._place > self.store.changelog:
                self.write()
        except StoreError as error:
            log.warning("%s", error)
        self.store.close()
