"""Whole mails drawn from the book at random: to read, to check, and to teach a house adapter its form."""

from __future__ import annotations

import random
from collections.abc import Collection, Iterator

from models.mail.slots import EXAMPLES, fill
from models.phrasebook.book import EXCLUSIVE, GOODS, OFFER_SLOTS, SITUATIONS, TONES, Book, Clause
from models.phrasebook.choice import unsaid

# Per goods group: products 1 to 3 and the category, as a shop would name them.
_EXAMPLES: dict[str, tuple[str, str, str, str]] = {
    "bakery": ("Seeded Sourdough", "Cinnamon Bagels", "Butter Croissants", "bread"),
    "produce": ("Vine Tomatoes", "Gala Apples", "Baby Spinach", "vegetables"),
    "dairy": ("Whole Milk", "Greek Yogurt", "Mature Cheddar", "milk"),
    "meat": ("Chicken Thighs", "Smoked Bacon", "Ground Beef", "poultry"),
    "seafood": ("Salmon Fillets", "Peeled Shrimp", "Smoked Trout", "fish"),
    "frozen": ("Garden Peas", "Vanilla Ice Cream", "Margherita Pizza", "frozen vegetables"),
    "snacks": ("Sea Salt Crisps", "Roasted Almonds", "Cheese Crackers", "snacks"),
    "sweets": ("Dark Chocolate", "Fruit Gums", "Oat Biscuits", "chocolate"),
    "drinks": ("Ginger Beer", "Sparkling Water", "Orange Juice", "soft drinks"),
    "alcohol": ("Pale Ale", "Dry Cider", "Red Table Wine", "beer and wine"),
    "coffee_tea": ("Harbour Blend Coffee", "Earl Grey Tea", "Cold Brew", "coffee"),
    "pantry": ("Basmati Rice", "Chopped Tomatoes", "Olive Oil", "rice"),
    "household": ("Laundry Detergent", "Dish Soap", "Sponges", "laundry"),
    "paper": ("Kitchen Roll", "Soft Tissues", "Toilet Paper", "paper goods"),
    "personal_care": ("Mint Toothpaste", "Almond Shampoo", "Hand Soap", "oral care"),
    "baby": ("Gentle Wipes", "Diapers", "Carrot Puree", "baby care"),
    "pets": ("Chicken Kibble", "Cat Litter", "Dental Chews", "dog food"),
    "health": ("Vitamin Tablets", "Throat Lozenges", "Plasters", "health"),
    "beauty": ("Rose Hand Cream", "Clay Mask", "Lip Balm", "skin care"),
    "clothing": ("Linen Shirt", "Wool Socks", "Canvas Belt", "shirts"),
    "electronics": ("Desk Lamp", "Wireless Earbuds", "USB Cable", "audio"),
    "kitchen": ("Cast Iron Pan", "Chef Knife", "Mixing Bowls", "cookware"),
    "garden": ("Garden Trowel", "Potting Soil", "Sweet Pea Seeds", "garden"),
    "sports": ("Yoga Mat", "Running Socks", "Water Bottle", "sports"),
    "toys": ("Wooden Train", "Jigsaw Puzzle", "Card Game", "toys"),
    "books": ("The Salt Path", "A Year of Soups", "Tide Tables", "travel writing"),
}


def choose(
    book: Book,
    trigger: str,
    tone: str,
    slots: Collection[str],
    goods: str,
    situation: Collection[str],
    rng: random.Random,
) -> dict[str, Clause]:
    """One admissible clause for each move, drawn uniformly; optional moves in half of the mails, or left out where none fits."""
    chosen: dict[str, Clause] = {}
    for move in book.moves(trigger):
        if move in book.optional(trigger) and rng.random() < 0.5:
            continue
        admissible = unsaid(book.clauses(trigger, move, tone, slots, goods, situation), chosen.values())
        if admissible:
            chosen[move] = rng.choice(admissible)
    return chosen


def context(rng: random.Random) -> tuple[str, frozenset[str]]:
    """A goods group and a set of situations that one customer can be in."""
    drawn = frozenset(rng.sample(SITUATIONS, rng.randint(0, 3)))
    possible = not any(pair <= drawn for pair in EXCLUSIVE)
    return rng.choice(GOODS), drawn if possible else frozenset()


def facts(goods: str) -> dict[str, str]:
    """Example values for every slot, with products that belong to the goods group."""
    one, two, three, category = _EXAMPLES.get(goods, tuple(EXAMPLES[n] for n in ("product_1", "product_2", "product_3", "category")))
    return EXAMPLES | {"product_1": one, "product_2": two, "product_3": three, "category": category}


def drafts(book: Book, trigger: str, tone: str, n: int, seed: int) -> list[str]:
    """``n`` drafts with their slots open. The same seed gives the same drafts. An empty tone draws one for each mail."""
    return [text for _, text in _composed(book, trigger, tone, n, seed)]


def sample(book: Book, trigger: str, tone: str, n: int, seed: int) -> list[str]:
    """``n`` whole mails filled with example facts; arguments as for ``drafts``."""
    return [fill(text, facts(goods)) for goods, text in _composed(book, trigger, tone, n, seed)]


def _composed(book: Book, trigger: str, tone: str, n: int, seed: int) -> Iterator[tuple[str, str]]:
    """Goods group and draft."""
    rng = random.Random(seed)
    for _ in range(n):
        goods, situation = context(rng)
        tone_now = tone or rng.choice(TONES)
        yield goods, book.compose(choose(book, trigger, tone_now, _slots(book, trigger, rng), goods, situation, rng))


def _slots(book: Book, trigger: str, rng: random.Random) -> frozenset[str]:
    """What the trigger always has, and in half of the mails every other fact; a coupon only together with its worth."""
    minimal = book.chapter(trigger).minimal
    more = frozenset(EXAMPLES) if rng.random() < 0.5 else frozenset(EXAMPLES) - OFFER_SLOTS
    return minimal | more if rng.random() < 0.7 else minimal
