"""Contexts to write for, made up at random but likely: a trigger, a customer, goods and the facts that such a mail has.

They teach and judge the house adapter. Some groups of goods are kept from
teaching, so that what is judged on them was never seen.
"""

from __future__ import annotations

import random
from collections.abc import Collection, Iterator
from dataclasses import dataclass

from models.learning.portrait import NOUNS
from models.mail.slots import EXAMPLES
from models.phrasebook.book import EXCLUSIVE, GOODS, SITUATIONS, TONES, Book
from models.writer.prompt import Prompt, narrow

UNSEEN = ("seafood", "drinks", "baby", "health", "garden", "toys", "books", "electronics")
# Names as shops and tills have them: brands, plurals, bare kinds.
STOCK: dict[str, tuple[str, ...]] = {
    "bakery": ("Sourdough Loaf", "Dinner rolls", "Blueberry Muffins", "Italian bread", "Carrot Cake"),
    "produce": ("Gala apples", "Bananas", "Baby Spinach", "Vine Tomatoes", "Russet potatoes"),
    "dairy": ("Milk", "Greek Yogurt", "Aged Cheddar", "Extra large eggs", "Own-brand butter"),
    "meat": ("Chicken Thighs", "Ground beef", "Lunchmeat", "Premium hot dogs", "Pork Shoulder"),
    "seafood": ("Salmon Fillets", "Peeled Shrimp", "Canned tuna", "Crab Cakes"),
    "frozen": ("Garden Peas", "Ice cream", "Frozen pizza", "Fish Fingers"),
    "snacks": ("Potato crisps", "Roasted Almonds", "Tortilla chips", "Salted Pretzels"),
    "sweets": ("Dark Chocolate", "Fruit Gums", "Chocolate candy", "Oat Cookies"),
    "drinks": ("Ginger Beer", "Sparkling Water", "Orange juice", "Soft drinks", "Own-brand cola"),
    "coffee_tea": ("Harbour Blend Coffee", "Earl Grey Tea", "Decaf coffee", "Hot Cocoa"),
    "alcohol": ("Pale Ale", "Dry Cider", "Red Table Wine"),
    "pantry": ("Basmati Rice", "Tomato Soup", "Olive Oil", "Pasta sauce", "Peanut butter and jam"),
    "baby": ("Gentle Wipes", "Baby diapers", "Junior baby food", "Bath Thermometer"),
    "pets": ("Chicken Kibble", "Cat Litter", "Dental Chews", "Wild bird seed"),
    "household": ("Laundry Detergent", "Light bulbs", "Trash Bags", "Household cleaners"),
    "paper": ("Toilet paper", "Paper Napkins", "Kitchen Roll"),
    "personal_care": ("Mint Toothpaste", "Own-brand shampoo", "Razor Blades", "Hand Soap"),
    "health": ("Vitamin C Tablets", "Throat Lozenges", "Adhesive Bandages"),
    "beauty": ("Rose Hand Cream", "Clay Mask", "Waterproof Mascara"),
    "clothing": ("Linen Shirt", "Wool Socks", "Canvas Sneakers", "Rain Jacket"),
    "electronics": ("Wireless Earbuds", "Desk Lamp", "USB Cable", "Bluetooth Speaker"),
    "kitchen": ("Cast Iron Pan", "Chef's Knife", "Stoneware Mugs", "Mixing Bowls"),
    "garden": ("Garden Trowel", "Sweet Pea Seeds", "Tulip Bouquet", "Watering Can"),
    "sports": ("Yoga Mat", "Running Belt", "Water Bottle"),
    "toys": ("Wooden Train", "Jigsaw Puzzle", "Card Game"),
    "books": ("The Salt Path", "Nature Magazine", "A Year of Soups"),
    "general": ("Gift Card", "Travel Umbrella", "Canvas Tote"),
}
_ALWAYS_A_PRODUCT = ("replenishment", "recommendation", "cart_abandoned", "checkout_abandoned", "post_purchase")
_SELDOM_A_PRODUCT = ("welcome", "birthday", "vip_thanks", "win_back", "coupon", "complaint_care", "refund_care")
# What nobody buys at regular intervals.
_LASTING = frozenset(("clothing", "electronics", "kitchen", "garden", "sports", "toys", "books", "general"))
_HABITS = ("a small basket", "a medium basket", "a big basket")


@dataclass(frozen=True, slots=True)
class Scene:
    """One context: the ``prompt`` as the writer sees it, and ``facts`` to fill the draft with."""

    prompt: Prompt
    facts: dict[str, str]


def scenes(book: Book, seed: int, goods: Collection[str] = GOODS) -> Iterator[Scene]:
    """Endless; the same for the same seed. Triggers come in turn, so that any stretch holds all of them alike."""
    rng = random.Random(seed)
    while True:
        for trigger in rng.sample(book.triggers, len(book.triggers)):
            kinds = set(goods) - _LASTING if trigger == "replenishment" else goods
            yield scene(book, trigger, rng.choice(TONES), rng.choice(sorted(kinds)), rng)


def scene(book: Book, trigger: str, tone: str, goods: str, rng: random.Random) -> Scene:
    """A likely context of one trigger."""
    facts = {name: EXAMPLES[name] for name in book.chapter(trigger).facts}
    if trigger in _ALWAYS_A_PRODUCT or "product_1" in facts or (trigger in _SELDOM_A_PRODUCT and rng.random() < 0.3):
        names = rng.sample(STOCK[goods], 1)
        facts |= {"product_1": names[0], "category": goods.replace("_", " and ")} | {"price_1": EXAMPLES["price_1"]}
    if trigger in ("post_purchase", "complaint_care", "refund_care") and rng.random() < 0.7:
        facts |= {name: EXAMPLES[name] for name in ("order_id", "order_date")}
    if trigger == "complaint_care" and rng.random() < 0.7:
        facts["ticket_id"] = EXAMPLES["ticket_id"]
    if trigger == "price_drop" and rng.random() < 0.8:
        facts["old_price_1"] = EXAMPLES["old_price_1"]
    if trigger == "coupon" or (trigger not in ("complaint_care", "refund_care") and rng.random() < 0.3):
        facts |= {"coupon_code": EXAMPLES["coupon_code"], "offer": EXAMPLES["offer"]}
    about = f"{rng.choice(NOUNS)[2]}, {rng.choice(_HABITS)}" if rng.random() < 0.8 else ""
    prompt = Prompt(trigger, tone, "en", about, goods, _situation(trigger, rng), tuple(sorted(facts)))
    return Scene(narrow(prompt, book), facts)


def _situation(trigger: str, rng: random.Random) -> tuple[str, ...]:
    """Up to two tags that a customer of this trigger can have."""
    never = {"welcome": set(SITUATIONS), "win_back": {"first_order", "just_back"}, "vip_thanks": {"first_order", "long_gone"}}
    never["replenishment"] = {"first_order", "long_gone"}
    drawn = frozenset(rng.sample(SITUATIONS, rng.choice((0, 1, 1, 2)))) - never.get(trigger, set())
    return tuple(sorted(drawn)) if not any(pair <= drawn for pair in EXCLUSIVE) else ()
