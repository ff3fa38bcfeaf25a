"""What a mail may state and what its words may depend on, taken from the event and the customer's state."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime

from models.customer.features import LONGEST_KIND
from models.customer.known import named
from models.customer.local_time import zone
from models.customer.state import CustomerState
from models.mail.money import amount
from models.phrasebook.goods import goods
from schemas.config import ShopSettings, Trigger
from schemas.events import Event, Item
from schemas.mail import Facts, Product

MOST_PRODUCTS = 3
SHORTEST_ID, LONGEST_VALUE = 1, 80  # characters of a fact that may stand in a mail
LONGEST_CURRENCY = 16  # characters kept of what should have three


def of_event(state: CustomerState, event: Event, trigger: Trigger, shop: ShopSettings) -> Facts:
    """Facts of a trigger that an event starts."""
    said = event.properties
    items: Sequence[Item] = said.products
    if not items and (said.name or said.product_id):
        items = [Item(said.product_id, said.sku, said.name, said.category, said.brand, said.price, said.quantity)]
    currency = currency_of(event, shop)
    values: dict[str, str] = {}
    _put(values, "order_id", said.order_id)
    if event.kind == "Order Completed":
        local = datetime.fromtimestamp(event.at, zone(state.standing.timezone, shop.timezone))
        values["order_date"] = f"{local.day} {local:%B}"
    _put(values, "ticket_id", said.ticket_id)
    if said.old_price:
        _put(values, "old_price_1", amount(said.old_price, currency))
    return complete(state, event.at, trigger, tuple(_product(item, currency) for item in best(items)), values)


def best(items: Sequence[Item]) -> list[Item]:
    """The products to speak of: the dearest line of each category first, three at most."""
    seen: set[str] = set()
    chosen = []
    for item in sorted(items, key=lambda item: -((item.price or 0.0) * (item.quantity or 1.0))):
        if item.name and len(item.name) <= LONGEST_VALUE and item.category not in seen:
            seen.add(item.category)
            chosen.append(item)
    return chosen[:MOST_PRODUCTS]


def _product(item: Item, currency: str) -> Product:
    category = item.category[:LONGEST_KIND]
    return Product(number_of(item), item.name, category, item.price, currency, goods(category, item.name))


def currency_of(event: Event, shop: ShopSettings) -> str:
    """The event's, else the shop's; a producer's novel is cut, as everywhere: several facts stand in one record."""
    return (event.properties.currency or shop.currency)[:LONGEST_CURRENCY]


def number_of(item: Item) -> str:
    """The product's id; none where it is a novel."""
    number = item.product_id or item.sku
    return number if len(number) <= LONGEST_VALUE else ""


def _put(values: dict[str, str], name: str, value: str) -> None:
    if SHORTEST_ID <= len(value) <= LONGEST_VALUE:
        values[name] = value


def complete(
    state: CustomerState, now: float, trigger: Trigger, products: tuple[Product, ...], values: dict[str, str] | None = None
) -> Facts:
    """Add the configured offer and the situation's tags."""
    values = dict(values or {})
    if trigger.code:
        values["coupon_code"] = trigger.code
        if trigger.offer:
            values["offer"] = trigger.offer
    known = named(state, now)
    return Facts(products=products, values=values, situation=situation(state, known))


def slots_of(facts: Facts) -> tuple[str, ...]:
    """Names of the slots that these facts can fill, sorted. Those that every mail has aren't among them."""
    found = {name for name, value in facts.values.items() if value}
    for number, product in enumerate(facts.products[:MOST_PRODUCTS], start=1):
        found.add(f"product_{number}")
        if product.price is not None:
            found.add(f"price_{number}")
    if facts.products and facts.products[0].category:
        found.add("category")
    return tuple(sorted(found))


def situation(state: CustomerState, known: Mapping[str, float]) -> tuple[str, ...]:
    """Tags that clauses may ask for; of each exclusive pair at most one."""
    tags = []
    if known["orders"] == 1:
        tags.append("first_order")
    elif known["orders"] >= 8 and known["days_since_order"] <= 60:
        tags.append("regular")
    if known["days_since_visit"] > 60:
        tags.append("long_gone")
    elif known["last_gap"] > 45:
        tags.append("just_back")
    if known["orders"] >= 3 and known["basket_mean"] > 0:
        ratio = known["basket_last"] / known["basket_mean"]
        tags += ["big_basket"] if ratio > 1.8 else ["small_basket"] if ratio < 0.5 else []
    if known["coupon_share"] > 0.2:
        tags.append("coupon_user")
    if state.orders.last_lines:
        tags += ["single_item"] if state.orders.last_lines == 1 else ["many_items"] if state.orders.last_lines >= 8 else []
    return tuple(tags)
