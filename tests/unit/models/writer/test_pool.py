"""The pool as a state machine: never the same draft twice to one customer, the best are kept, releases drain."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from models.writer.automaton import Written
from models.writer.pool import Pool, rank

KEY = ("prompt", "r1")


def draft(number: int, score: float = -1.0, special: float = 0.0) -> Written:
    return Written(f"mail {number}", (), score, special, 50, number)


def test_the_best_of_those_offered_are_kept_and_given_by_turns() -> None:
    pool = Pool(size=3, oversample=2)
    for number, score in enumerate([-3.0, -1.0, -2.0, -5.0, -0.5, -4.0]):
        pool.offer(KEY, draft(number, score), {"form": "ok"})
    assert pool.wants(KEY) == 0 and pool.have(KEY) == 3
    given = [pool.take(KEY, f"customer {i}") for i in range(6)]
    texts = [kept.draft.text for kept in given if kept]
    assert set(texts) == {"mail 4", "mail 1", "mail 2"} and texts[:3] == texts[3:]


def test_words_for_this_case_beat_a_little_likelihood() -> None:
    assert rank(draft(1, -1.2, 0.8)) > rank(draft(2, -1.0, 0.0))


def test_the_same_words_twice_are_one_draft() -> None:
    pool = Pool(size=3)
    assert pool.offer(KEY, draft(1), {}, "ann")
    assert not pool.offer(KEY, draft(1), {}, "bob")
    assert pool.take(KEY, "ann") is None and pool.take(KEY, "bob") is None and pool.take(KEY, "cy") is not None


def test_words_that_made_place_for_better_ones_reach_nobody_twice() -> None:
    pool = Pool(size=1)
    pool.offer(KEY, draft(1, -1.0), {})
    assert not pool.offer(KEY, draft(2, -2.0), {}, "ann")
    assert pool.offer(KEY, draft(2, -0.5), {})
    assert pool.take(KEY, "ann") is None and pool.take(KEY, "bob") is not None


def test_a_new_release_drains_the_old_ones_shelves() -> None:
    pool = Pool()
    pool.offer(("p", "r1"), draft(1), {})
    pool.offer(("p", "r2"), draft(2), {})
    assert pool.keep_releases({"r2", "base"}) == 1
    assert pool.have(("p", "r1")) == 0 and pool.have(("p", "r2")) == 1


def test_fresh_share_is_stable_and_near_its_setting() -> None:
    pool = Pool(fresh_share=0.1)
    drawn = [pool.fresh(f"intent {i}") for i in range(5000)]
    assert 0.08 < sum(drawn) / 5000 < 0.12
    assert drawn == [pool.fresh(f"intent {i}") for i in range(5000)]
    assert not any(Pool(fresh_share=0.0).fresh(str(i)) for i in range(100))


def test_idle_time_goes_to_the_prompt_in_demand() -> None:
    pool = Pool(size=1, oversample=1)
    for key, times in ((("a", "r"), 2), (("b", "r"), 5), (("c", "r"), 1)):
        for _ in range(times):
            pool.ask(key)
    assert pool.hungry() == ("b", "r")
    pool.offer(("b", "r"), draft(1), {})
    assert pool.hungry() == ("a", "r")
    pool.skip(("a", "r"))
    assert pool.hungry() is None  # "c" was asked for once: perhaps never again


class Pools(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.pool = Pool(size=3, oversample=2)
        self.had: set[tuple[str, str]] = set()
        self.number = 0

    @rule(customer=st.sampled_from(["", "ann", "bob"]), score=st.floats(-5, 0), repeat=st.booleans())
    def offer(self, customer: str, score: float, repeat: bool) -> None:
        self.number += not repeat
        self.pool.offer(KEY, draft(self.number, score), {}, customer)
        if customer:
            self.had.add((customer, f"mail {self.number}"))

    @rule(customer=st.sampled_from(["ann", "bob", "cy"]))
    def take(self, customer: str) -> None:
        kept = self.pool.take(KEY, customer)
        if kept is not None and kept.draft.text != f"mail {self.number}":
            assert (customer, kept.draft.text) not in self.had
        if kept is not None:
            self.had.add((customer, kept.draft.text))

    @invariant()
    def bounded(self) -> None:
        assert self.pool.have(KEY) <= 3


TestPools = Pools.TestCase
TestPools.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)
