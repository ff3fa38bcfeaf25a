"""Goods that go together, each kind's favourite product, and how often each kind is bought.

Method (measured in docs/relevance.md): item-to-item neighbours by cosine over
counts of customers, kept online. The user-to-user variant scores a little more
and would need every customer's basket in one place.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Mapping, Sequence
from itertools import combinations

import msgspec

from models.learning.replenishment import DAY
from schemas.learning import ItemsSnapshot

SHRINK = 10.0  # in the cosine's denominator: few shared customers prove little
NEIGHBOURS = 20  # published for each item
WIDEST = 512  # neighbours remembered for each item; beyond it the weaker half is forgotten
MOST = 1500  # items published, the most bought first
LARGEST = 1_500_000  # bytes of the published record; the broker takes two million
PRODUCT_HALF_LIFE = 60 * DAY  # seconds
PRODUCTS = 64  # remembered for each item
POPULARITY = 0.01  # of the score: it breaks ties, and fills up where there are no neighbours


class ItemCounts(msgspec.Struct, array_like=True):
    """Counts of one item (a category): its customers, their buying days, the sum of their first-seen times (s)."""

    customers: int = 0
    purchases: int = 0
    first_seen: float = 0.0
    shared: dict[str, int] = {}  # neighbour -> customers of both
    products: dict[str, tuple[float, float, str]] = {}  # product id -> (decayed count, as of (s), the product as last bought)


class ItemsLearned(msgspec.Struct):
    """All that ``ItemsLearner`` knows."""

    baskets: int = 0
    latest: float = 0.0
    items: dict[str, ItemCounts] = {}


class ItemsLearner:
    """Learns baskets in the order of arrival; each customer's first purchase of an item counts once."""

    def __init__(self) -> None:
        self.state = ItemsLearned()

    def learn(
        self,
        new: Sequence[str],
        owned: Sequence[str],
        products: Mapping[str, Sequence[str]],
        at: float,
        first_seen: float,
    ) -> None:
        """One basket of one customer.

        ``new``: items never bought before; ``owned``: items bought before this
        basket; ``products``: what was bought of each item; ``at`` and the
        customer's ``first_seen`` in seconds. A product is JSON of
        ``schemas.mail.Product``, so that the newest price goes with it.
        """
        state = self.state
        state.baskets += 1
        state.latest = max(state.latest, at)
        for name in new:
            item = self._item(name)
            item.customers += 1
            item.first_seen += first_seen
            for other in owned:
                if other != name:
                    self._pair(name, other)
        for one, other in combinations(dict.fromkeys(new), 2):
            self._pair(one, other)
        for name, bought in products.items():
            item = self._item(name)
            item.purchases += 1
            for product in bought:
                key = _product_id(product)
                count, since, _ = item.products.get(key, (0.0, at, product))
                item.products[key] = (_decay(count, at - since) + 1.0, max(at, since), product)
            if len(item.products) > PRODUCTS:
                kept = heapq.nlargest(PRODUCTS // 2, item.products.items(), key=lambda pair: (_decay(pair[1][0], at - pair[1][1]), pair[0]))
                item.products = dict(kept)

    def snapshot(self, epoch: int) -> ItemsSnapshot | None:
        """The published form; None before the first basket."""
        state = self.state
        if not state.items:
            return None
        bought = heapq.nlargest(MOST, ((item.customers, name) for name, item in state.items.items() if item.customers))
        made = self._published(epoch, bought)
        while len(msgspec.json.encode(made)) > LARGEST:  # long names
            bought = bought[: len(bought) // 2]
            made = self._published(epoch, bought)
        return made

    def _published(self, epoch: int, bought: list[tuple[int, str]]) -> ItemsSnapshot:
        names = [name for _, name in bought]
        most = bought[0][0] if bought else 1
        return ItemsSnapshot(
            epoch=epoch,
            neighbours={name: tuple(self.neighbours(name)) for name in names},
            popularity={name: round(count / most, 6) for count, name in bought},
            favourites={name: favourite for name in names if (favourite := self.favourite(name))},
            prior_gap={name: gap for name in names if (gap := self.prior_gap(name)) is not None},
            learned=self.state.baskets,
        )

    def neighbours(self, name: str) -> list[tuple[str, float]]:
        """The closest other items with their similarity, best first."""
        items = self.state.items
        own = items[name]
        scored = (
            (shared / (math.sqrt(own.customers * items[other].customers) + SHRINK), other)
            for other, shared in own.shared.items()
            if items[other].customers
        )
        return [(other, round(score, 6)) for score, other in heapq.nlargest(NEIGHBOURS, scored)]

    def favourite(self, name: str) -> str:
        """The product bought most of late, as it was last bought; "" where none is known."""
        found, latest = self.state.items[name].products.items(), self.state.latest
        best = max(found, key=lambda pair: (_decay(pair[1][0], latest - pair[1][1]), pair[0]), default=None)
        return best[1][2] if best else ""

    def prior_gap(self, name: str) -> float | None:
        """Mean days between purchases over all who ever bought the item; None where nobody did."""
        item = self.state.items[name]
        if not item.customers or not item.purchases:
            return None
        days = (item.customers * self.state.latest - item.first_seen) / DAY + item.customers
        return round(max(days / item.purchases, 1.0), 4)

    def to_bytes(self) -> bytes:
        """The whole state as MessagePack."""
        return msgspec.msgpack.encode(self.state)

    @classmethod
    def from_bytes(cls, data: bytes) -> ItemsLearner:
        """What ``to_bytes`` wrote; raises ``msgspec.DecodeError`` where it is something else."""
        made = cls()
        made.state = msgspec.msgpack.decode(data, type=ItemsLearned)
        return made

    def _item(self, name: str) -> ItemCounts:
        found = self.state.items.get(name)
        if found is None:
            found = self.state.items[name] = ItemCounts()
        return found

    def _pair(self, one: str, other: str) -> None:
        for name, neighbour in ((one, other), (other, one)):
            shared = self._item(name).shared
            shared[neighbour] = shared.get(neighbour, 0) + 1
            if len(shared) > WIDEST:
                self._item(name).shared = dict(heapq.nlargest(WIDEST // 2, shared.items(), key=lambda pair: (pair[1], pair[0])))


def recommend(snapshot: ItemsSnapshot, owned: Mapping[str, float], k: int) -> list[tuple[str, float]]:
    """Up to ``k`` items that the customer never bought, best first, with their scores.

    ``owned`` maps an item to the customer's decayed count of it.
    """
    scores = {name: POPULARITY * share for name, share in snapshot.popularity.items() if name not in owned}
    for name, count in owned.items():
        weight = math.log1p(max(count, 0.0))
        for other, similarity in snapshot.neighbours.get(name, ()):
            if other in scores:
                scores[other] += weight * similarity
    return [(name, score) for score, name in heapq.nlargest(k, ((score, name) for name, score in scores.items()))]


class _Named(msgspec.Struct):
    product_id: str


def _product_id(product: str) -> str:
    try:
        return msgspec.json.decode(product, type=_Named).product_id or product
    except msgspec.DecodeError:
        return product


def _decay(count: float, seconds: float) -> float:
    return float(count * 2.0 ** (-max(seconds, 0.0) / PRODUCT_HALF_LIFE))
