"""Consumer groups as their coordinators describe them, and the grace that they have while they rebalance."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

REBALANCING = frozenset({"PreparingRebalance", "CompletingRebalance", "Assigning", "Reconciling"})
EMPTY = frozenset({"Empty", "Dead"})
SETTLING = 30.0  # seconds after a rebalance in which new owners recover their state and need not commit
GRACE_MOST = 300.0  # seconds; a group that rebalances on and on makes no progress either (Kafka's own max.poll.interval.ms)
CONSUMERS = frozenset({"consumer", ""})  # protocol types that commit offsets; others are Connect's, a schema registry's


@dataclass(frozen=True, slots=True)
class Group:
    """``members`` None: not told (a group of the newer protocol). Times in seconds; ``shape``: who holds what."""

    name: str
    state: str
    members: int | None
    rebalances: int = 0
    shape: int = 0
    restless_since: float | None = None  # of the present run of rebalances
    moved_at: float = 0.0  # the last look at which it rebalanced

    @property
    def inhabited(self) -> bool:
        """Somebody is in it."""
        return self.members > 0 if self.members is not None else self.state not in EMPTY

    def has_grace(self, now: float) -> bool:
        """Nothing is to be expected of it yet."""
        return self.restless_since is not None and now - self.restless_since < GRACE_MOST


def after(before: Group | None, name: str, listed_state: str, told: Mapping[str, Any] | None, now: float) -> Group:
    """The group at this look. ``told``: DescribeGroups' answer, None where there is none for this kind of group."""
    state, members, shape = listed_state or "Unknown", None, 0
    if told is not None:
        state = str(told.get("group_state") or state)
        members = len(told.get("members") or ())
        shape = hash(tuple(sorted((str(one.get("member_id")), str(one.get("member_assignment"))) for one in told.get("members") or ())))
    if before is None:
        restless = now if state in REBALANCING else None
        return Group(name, state, members, 0, shape, restless, now if restless is not None else 0.0)
    # One that began and ended between two looks shows in who holds what; a group that was emptied has nobody to rebalance.
    moved = state in REBALANCING or (shape != before.shape and state not in EMPTY)
    turned = moved and before.state not in REBALANCING
    if moved:
        since = before.restless_since if before.restless_since is not None else now
        return Group(name, state, members, before.rebalances + turned, shape, since, now)
    settled = now - before.moved_at >= SETTLING
    return Group(name, state, members, before.rebalances, shape, None if settled else before.restless_since, before.moved_at)
