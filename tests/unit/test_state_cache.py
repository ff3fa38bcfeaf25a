"""The states at hand: always the newest, never more bytes than allowed."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from streams.cache import StateCache

PUTS = st.lists(st.tuples(st.sampled_from("abcdef"), st.binary(min_size=1, max_size=9)), max_size=40)


@given(PUTS, st.integers(1, 30))
def test_what_is_there_is_the_newest_and_fits(puts: list[tuple[str, bytes]], most: int) -> None:
    cache, newest = StateCache(most), dict[str, bytes]()
    for customer, state in puts:
        cache.put(customer, state)
        newest[customer] = state
        held = {name: found for name in newest if (found := cache.get(name)) is not None}
        assert all(found == newest[name] for name, found in held.items())
        assert sum(map(len, held.values())) <= most


def test_what_was_not_asked_for_longest_goes_first() -> None:
    cache = StateCache(2)
    cache.put("a", b"1")
    cache.put("b", b"2")
    assert cache.get("a") == b"1"
    cache.put("c", b"3")
    assert (cache.get("a"), cache.get("b"), cache.get("c")) == (b"1", None, b"3")
