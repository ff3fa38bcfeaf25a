"""Goods that go together are found, counted once a customer, and survive a restart."""

from __future__ import annotations

import random

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.learning import items
from models.learning.items import ItemsLearner, recommend
from models.learning.replenishment import DAY
from schemas.learning import ItemsSnapshot
from schemas.mail import Product, encode

T = 1_700_000_000.0


def taught(customers: dict[str, list[list[str]]]) -> ItemsLearner:
    """Each customer's baskets, a day apart; product names are item + "-1"."""
    learner = ItemsLearner()
    for baskets in customers.values():
        owned: list[str] = []
        for day, basket in enumerate(baskets):
            new = [item for item in dict.fromkeys(basket) if item not in owned]
            learner.learn(new, owned, {item: (f"{item}-1",) for item in basket}, T + day * DAY, T)
            owned += new
    return learner


def published(learner: ItemsLearner) -> ItemsSnapshot:
    found = learner.snapshot(1)
    assert found is not None
    return found


def pets_and_babies() -> ItemsLearner:
    customers = {f"p{n}": [["dog food"], ["dog treats", "milk"]] for n in range(20)}
    customers |= {f"b{n}": [["nappies", "milk"], ["baby food"]] for n in range(30)}
    return taught(customers)


def test_goes_together_beats_popular() -> None:
    snapshot = published(pets_and_babies())
    assert [name for name, _ in recommend(snapshot, {"dog food": 3.0}, 2)] == ["dog treats", "milk"]
    assert recommend(snapshot, {"nappies": 1.0, "milk": 1.0}, 1)[0][0] == "baby food"


def test_similarity_is_the_shrunk_cosine() -> None:
    neighbours = dict(published(pets_and_babies()).neighbours["dog food"])
    assert neighbours["dog treats"] == pytest.approx(20 / (20 + 10), abs=1e-6)
    assert neighbours["milk"] == pytest.approx(20 / ((20 * 50) ** 0.5 + 10), abs=1e-6)


def test_the_unknown_customer_gets_what_is_popular() -> None:
    assert recommend(published(pets_and_babies()), {}, 1)[0][0] == "milk"


def test_nothing_bought_before_is_recommended() -> None:
    snapshot = published(pets_and_babies())
    owned = {name: 1.0 for name in snapshot.popularity}
    assert recommend(snapshot, owned, 5) == []


def test_the_favourite_is_what_is_bought_of_late() -> None:
    learner = ItemsLearner()
    for day in range(10):
        learner.learn(["tea"] if day == 0 else [], [], {"tea": ["old"]}, T + day * DAY, T)
    assert learner.favourite("tea") == "old"
    for day in range(200, 205):
        learner.learn([], ["tea"], {"tea": ["new"]}, T + day * DAY, T)
    assert published(learner).favourites == {"tea": "new"}


def test_a_favourite_carries_its_newest_price() -> None:
    learner = ItemsLearner()
    for day, price in enumerate((3.0, 4.0, 5.0)):
        product = Product("p1", "Green tea", "tea", price)
        learner.learn([], [], {"tea": [encode(product).decode()]}, T + day * DAY, T)
    learner.learn([], [], {"tea": [encode(Product("p2", "Other")).decode()]}, T + 3 * DAY, T)
    assert msgspec.json.decode(learner.favourite("tea"), type=Product).price == 5.0


def test_the_prior_gap_is_days_known_over_purchases() -> None:
    learner = ItemsLearner()
    for day in range(0, 100, 10):
        learner.learn(["tea"] if day == 0 else [], [], {"tea": []}, T + day * DAY, T)
    assert learner.prior_gap("tea") == pytest.approx(9.1)  # ninety days and the first, ten purchases
    assert published(learner).prior_gap == {"tea": 9.1}


def test_memory_stays_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(items, "WIDEST", 20)
    monkeypatch.setattr(items, "PRODUCTS", 10)
    learner = ItemsLearner()
    for n in range(200):
        learner.learn([f"i{n}", "milk"], [], {"milk": [f"p{n}"]}, T + n, T)
    assert all(len(item.shared) <= 20 and len(item.products) <= 10 for item in learner.state.items.values())


def test_the_record_stays_under_the_brokers_limit() -> None:
    learner, rng = ItemsLearner(), random.Random(1)
    names = [f"category with a long name {n}" for n in range(1600)]
    for _ in range(1500):
        basket = rng.sample(names, 20)
        learner.learn(basket, [], {name: [f"product {name}"] for name in basket}, T, T)
    assert 100_000 < len(msgspec.json.encode(published(learner))) <= items.LARGEST


def test_a_restart_changes_nothing() -> None:
    learner = pets_and_babies()
    again = ItemsLearner.from_bytes(learner.to_bytes())
    for each in (learner, again):
        each.learn(["ham"], ["milk"], {"ham": ["ham-1"]}, T + 9 * DAY, T)
    assert published(again) == published(learner)
    with pytest.raises(msgspec.DecodeError):
        ItemsLearner.from_bytes(b"\x93junk")


def test_nothing_is_published_before_the_first_basket() -> None:
    assert ItemsLearner().snapshot(1) is None


name = st.sampled_from("abcdefgh")


@given(st.dictionaries(st.integers(0, 5).map(str), st.lists(st.lists(name, max_size=4), max_size=5), max_size=6))
def test_any_baskets_give_symmetric_counts_below_their_marginals(customers: dict[str, list[list[str]]]) -> None:
    learner = taught(customers)
    kept = learner.state.items
    for one, item in kept.items():
        assert item.customers == sum(any(one in basket for basket in baskets) for baskets in customers.values())
        for other, shared in item.shared.items():
            assert kept[other].shared[one] == shared <= min(item.customers, kept[other].customers)
    snapshot = learner.snapshot(1)
    if snapshot is not None:
        assert all(name not in {"a"} for name, _ in recommend(snapshot, {"a": 2.0}, 9))
