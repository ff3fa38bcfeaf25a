"""Intake's small parts: the local store, the schedule, the sieve."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.errors import StoreError
from streams.intake.route import FORWARDED, MOST_MOVES, ORIGIN, Topology, route
from streams.intake.schedule import Schedule
from streams.intake.store import CLOCK, Clock, Store, _merge
from transport.clients import partition_of
from transport.oversized import CUT, CUT_BYTES


def test_the_store_keeps_states_clock_and_place_together(tmp_path: Path) -> None:
    store = Store(tmp_path / "state" / "0")
    assert (store.clock, store.changelog, store.get("a")) == (Clock(), 0, None)
    store.write({b"a": b"1", "ü🧁".encode(): b"2", CLOCK: Clock(7, 1.5).packed()}, 3)
    store.close()
    store = Store(tmp_path / "state" / "0")
    assert (store.clock, store.changelog) == (Clock(7, 1.5), 3)
    assert store.get_many(["a", "b", "ü🧁"]) == {"a": b"1", "ü🧁": b"2"}
    assert dict(store.items()) == {"a": b"1", "ü🧁": b"2"}
    store.write({b"a": None}, 4)
    assert store.get("a") is None
    store = store.wiped()
    assert (list(store.items()), store.changelog) == ([], 0)
    store.close()


def test_a_store_that_can_not_be_used_is_one_line(tmp_path: Path) -> None:
    store = Store(tmp_path / "0")
    with pytest.raises(StoreError) as caught:
        Store(tmp_path / "0")
    store.close()
    assert "\n" not in str(caught.value)
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError):
        Store(tmp_path / "file" / "0")


def test_a_full_disk_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(tmp_path / "0")

    class Full:
        def write(self, batch: object) -> None:
            raise RuntimeError("IO error: No space left on device:\n While appending")

    database, store._db = store._db, Full()
    with pytest.raises(StoreError, match="free some space"):
        store.write({}, 1)
    database.close()


def test_of_two_changelog_records_the_one_that_saw_more_events_wins(tmp_path: Path) -> None:
    store = Store(tmp_path / "0")
    store.write({b"a": b"5", CLOCK: Clock(6, 9.0).packed()}, 1)
    records: dict[bytes, bytes | None] = {}
    for key, value in ((b"a", b"3"), (b"b", b"1"), (b"b", b"2"), (b"b", b"1"), (CLOCK, Clock(4, 11.0).packed())):
        _merge(records, store, key, value, int)
    store.close()
    assert records == {b"b": b"2", CLOCK: Clock(6, 11.0).packed()}


@settings(deadline=None)
@given(st.lists(st.tuples(st.sampled_from("abcd"), st.floats(0, 100) | st.just(math.inf))), st.floats(0, 100))
def test_the_schedule_gives_each_customers_last_timer(changes: list[tuple[str, float]], now: float) -> None:
    schedule, model = Schedule(), {}
    for customer, at in changes:
        schedule.set(customer, at)
        model[customer] = at
    due = schedule.due(now, 10)
    assert sorted(due) == sorted(c for c, at in model.items() if at <= now)
    assert [model[c] for c in due] == sorted(model[c] for c in due)
    assert schedule.due(now, 10) == []
    assert len(schedule) == sum(now < at < math.inf for at in model.values())


@settings(deadline=None)
@given(st.lists(st.tuples(st.sampled_from("abc"), st.floats(0, 100) | st.just(math.inf), st.floats(0, 100) | st.none()), max_size=60))
def test_the_schedule_equals_a_list_whatever_comes_between(steps: list[tuple[str, float, float | None]]) -> None:
    schedule, model = Schedule(), dict[str, float]()
    for customer, at, now in steps:
        schedule.set(customer, at)
        model[customer] = at
        assert schedule.next() == min(model.values())
        if now is not None:
            due = schedule.due(now, 10)
            assert due == sorted((c for c, at in model.items() if at <= now), key=lambda c: (model[c], c))
            for name in due:
                del model[name]
            model = model or {"z": math.inf}
    assert len(schedule) == sum(at < math.inf for at in model.values())


def test_a_timer_that_is_put_off_at_each_event_takes_no_room() -> None:
    schedule = Schedule()
    for n in range(10_000):
        schedule.set(f"c{n % 10}", float(n))
    assert len(schedule._heap) == 10
    assert schedule.due(9_994, 99) == [f"c{n}" for n in range(5)]


def test_the_schedule_takes_no_more_than_asked() -> None:
    schedule = Schedule()
    for n in range(5):
        schedule.set(f"c{n}", n)
    assert schedule.due(10, 2) == ["c0", "c1"]
    assert schedule.due(10, 9) == ["c2", "c3", "c4"]


@dataclass
class Record:
    value: bytes | None
    key: bytes | None = b"k"
    offset: int = 4
    timestamp: int = 77
    headers: tuple[tuple[str, bytes], ...] = ()


@dataclass
class Gathered:
    added: list[tuple[Any, ...]] = field(default_factory=list)

    large: list[tuple[Any, ...]] = field(default_factory=list)

    def add(self, *record: Any) -> None:
        self.added.append(record)

    def add_large(self, *tries: Any) -> None:
        self.large.append(tries)


PLACES = Topology("customer.events", "customer.events.dlq", 6)
BODY = b'{"type": "page", "userId": "c-1", "timestamp": "2025-01-01T00:00:00Z"}'


def test_an_event_at_home_stays() -> None:
    out: Any = Gathered()
    home = partition_of(b"c-1", 6)
    sifted = route([Record(BODY)], PLACES, home, 2e9, out)
    assert [event.customer for event in sifted.events] == ["c-1"]
    assert (sifted.counts, out.added) == ({"read": 1}, [])


def test_a_stray_goes_home_once_and_keeps_an_identity() -> None:
    out: Any = Gathered()
    home = partition_of(b"c-1", 6)
    away = (home + 1) % 6
    sifted = route([Record(BODY, headers=(("traceparent", b"t"),))], PLACES, away, 2e9, out)
    assert (sifted.events, sifted.counts) == ([], {"forwarded": 1, "read": 0})
    topic, partition, key, value, headers, timestamp = out.added[0]
    assert (topic, partition, key, value, timestamp) == ("customer.events", home, b"c-1", BODY, None)
    assert headers == (("traceparent", b"t"), (FORWARDED, b"1"), (ORIGIN, f"{away}:4".encode()))
    arrived = [route([Record(BODY, offset=n, headers=headers)], PLACES, home, 2e9, Gathered()).events[0] for n in (8, 9)]  # type: ignore[arg-type]
    assert arrived[0].message_id == arrived[1].message_id != ""


@pytest.mark.parametrize("value", [b"1", b"0", b"2", b"", b"yes", None, b"-1", b"99999999999", "\u0663".encode()])
def test_a_header_that_anybody_may_write_keeps_no_event_in_a_foreign_partition(value: bytes | None) -> None:
    """A producer, a mirror or a redrive that set it had an ``Unsubscribed`` applied where nobody looks for it."""
    home = partition_of(b"c-1", 6)
    out: Any = Gathered()
    record = Record(BODY, headers=((FORWARDED, value), (ORIGIN, b"7:1"), ("h", b"v")))  # type: ignore[arg-type]
    assert route([record], PLACES, (home + 1) % 6, 2e9, out).counts == {"forwarded": 1, "read": 0}
    headers = out.added[0][4]
    assert [name for name, _ in headers] == ["h", FORWARDED, ORIGIN]
    assert dict(headers)[ORIGIN] == b"7:1"


def test_a_record_that_is_moved_to_and_fro_is_set_aside_at_last() -> None:
    """While workers disagree about the number of partitions each moves what the other moved."""
    home = partition_of(b"c-1", 6)
    record, moved = Record(BODY), 0
    while True:
        out: Any = Gathered()
        counts = route([record], PLACES, (home + 1) % 6, 2e9, out).counts
        topic, _, _, _, headers, _ = out.added[0]
        if topic == "customer.events.dlq":
            break
        moved, record = moved + 1, Record(BODY, headers=headers)
    assert (moved, counts) == (MOST_MOVES, {"dead.unsupported_format": 1, "read": 0})
    assert dict(headers)["mailtide.reason"] == b"unsupported_format"


def test_a_dead_letter_is_unchanged_but_for_its_headers() -> None:
    out: Any = Gathered()
    sifted = route([Record(b"ann@shop.example", None, 9, headers=(("h", b"v"),))], PLACES, 3, 2e9, out)
    assert sifted.counts == {"dead.not_json": 1, "read": 0}
    topic, partition, key, value, headers, timestamp = out.added[0]
    assert (topic, partition, key, value, timestamp) == ("customer.events.dlq", 0, None, b"ann@shop.example", 77)
    assert headers[0] == ("h", b"v")
    assert dict(headers)["mailtide.reason"] == b"not_json"
    assert not any(b"ann@" in content for _, content in headers)


def test_a_large_dead_letter_has_a_shorter_one_behind_it_and_its_place_for_the_log() -> None:
    out: Any = Gathered()
    headers = (("h", b"v"), ("null", None))
    sifted = route([Record(b"x" * (2 << 20), b"k" * 100_000, headers=headers)], PLACES, 3, 2e9, out)  # type: ignore[arg-type]
    assert (sifted.counts, out.added) == ({"dead.too_large": 1, "read": 0}, [])
    ((whole, short), place) = out.large[0]
    assert place == {"topic": "customer.events", "partition": 3, "offset": 4}
    assert (whole.key, whole.value, whole.headers[:2]) == (b"k" * 100_000, b"x" * (2 << 20), headers)
    assert (short.key, short.value) == (b"k" * CUT_BYTES, b"x" * CUT_BYTES)
    assert short.headers == (*whole.headers, (CUT, str((2 << 20) + 100_000 + len("hvnull")).encode()))
    route([Record(b"{", headers=(("h", b"v" * (2 << 20)),))], PLACES, 3, 2e9, out)
    assert "h" not in dict(out.large[1][0][1].headers)


def test_a_large_stray_is_set_aside_where_its_home_refuses_it() -> None:
    out: Any = Gathered()
    home = partition_of(b"c-1", 6)
    sifted = route([Record(BODY, headers=(("h", b"v" * (1 << 20)),))], PLACES, (home + 1) % 6, 2e9, out)
    assert (sifted.counts, out.added) == ({"forwarded": 1, "read": 0}, [])
    forward, whole, short = out.large[0][0]
    assert [record.topic for record in (forward, whole, short)] == ["customer.events", "customer.events.dlq", "customer.events.dlq"]
    assert [dict(record.headers).get("mailtide.reason") for record in (forward, whole, short)] == [None, b"too_large", b"too_large"]


@pytest.mark.parametrize(
    ("key", "hashed"), [(b"21", -973932308), (b"foobar", -790332482), (b"a-little-bit-long-string", -985981536), (b"abc", 479470107)]
)
def test_the_hash_is_the_java_clients(key: bytes, hashed: int) -> None:
    """The values of Kafka's own ``UtilsTest.testMurmur2``."""
    assert partition_of(key, 1000) == (hashed & 0x7FFFFFFF) % 1000
