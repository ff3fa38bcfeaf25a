"""The phrase book's group of goods that a product belongs to, by the words in its category and name."""

from __future__ import annotations

import re
from functools import lru_cache

WORDS: dict[str, str] = {
    "coffee_tea": "coffee coffees espresso tea teas cocoa",
    "pets": "dog cat pet puppy kitten aquarium bird",
    "baby": "baby infant diaper diapers nappy toddler",
    "alcohol": "beer wine wines ale lager spirits liquor vodka whiskey cider cooler",
    "seafood": "seafood fish salmon tuna shrimp crab shellfish cod",
    "frozen": "frozen ice icecream popsicle pizza",
    "bakery": "bread breads bakery bagel bagels roll rolls bun buns cake cakes pie pies pastry pastries muffin muffins donut croissant tortilla "
    "tortillas",
    "produce": "fruit fruits vegetable vegetables produce salad apple apples banana bananas berry berries potato potatoes tomato tomatoes "
    "onion onions citrus orange oranges grapes melon melons melons lettuce carrots mushrooms peppers herbs avocado broccoli corn tropical",
    "dairy": "milk cheese cheeses yogurt butter cream eggs egg dairy margarine creamer",
    "meat": "meat beef pork chicken turkey lamb bacon sausage sausages ham lunchmeat deli hot dogs poultry steak",
    "sweets": "candy chocolate chocolates sweets gum cookie cookies",
    "snacks": "snack snacks chips crackers pretzels popcorn nuts nut bars salty",
    "drinks": "drink drinks soda juice juices water beverages beverage cola lemonade isotonic",
    "paper": "paper tissue tissues towels toilet napkins bath",
    "household": "detergent detergents cleaner cleaners cleaning laundry dish softener bleach household bags foil trash candles bulbs batteries",
    "health": "vitamin vitamins medicine cold remedies pharmacy analgesic antacid antacids first aid health diet",
    "beauty": "cosmetic cosmetics makeup beauty perfume skin fragrance mascara lipstick lotion lotions",
    "personal_care": "shampoo soap soaps deodorant deodorants toothpaste shaving razor razors oral hair hygiene feminine dental",
    "clothing": "shirt shirts dress shoes socks hosiery apparel clothing jacket jeans hat shoe",
    "electronics": "phone headphones laptop tv camera charger electronics speaker tablet cable audio",
    "books": "book books magazine magazines novel greeting cards newspaper",
    "toys": "toy toys game games puzzle doll",
    "sports": "sport sports yoga fitness bike bicycle running golf",
    "garden": "garden plant plants flower flowers seed seeds lawn floral rose roses bouquet",
    "kitchen": "pan pans knife knives cookware kitchen mug mugs plate plates utensils gadgets",
    "pantry": "soup soups pasta rice sauce sauces cereal cereals oil oils flour sugar spices beans canned condiments dressing dressings "
    "mayonnaise ketchup syrup syrups jam jelly peanut baking mixes olives pickles breakfast noodles oatmeal honey seasonings molasses shortening",
}
GROUP_OF = {word: group for group, words in reversed(WORDS.items()) for word in words.split()}
_WORD = re.compile(r"[a-z]+")


@lru_cache(maxsize=8192)
def goods(category: str, name: str = "") -> str:
    """The group, "general" where no word is known; the category counts before the name.

    >>> goods("Soft Drinks"), goods("", "Dark roast coffee"), goods("Fuel")
    ('drinks', 'coffee_tea', 'general')
    """
    for text in (category, name):
        for word in _WORD.findall(text.lower()):
            if word in GROUP_OF:
                return GROUP_OF[word]
    return "general"
