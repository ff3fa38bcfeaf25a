"""Readable names out of the panel's till texts, and the first names and choices that the data lacks.

Everything here is a pure function of its arguments: two replays make the same people and the same products.
"""

from __future__ import annotations

import hashlib
import re
from functools import lru_cache

FIRST_NAMES = (
    "Ada Aaron Alice Amir Anna Ben Bianca Caleb Carla Chloe Clara Daniel David Diana Elena Eli Emma Ethan Eva Felix Grace Hannah Henry "
    "Ida Isaac Ivy Jack Jade James Jana Joel Julia Karen Kevin Laura Leo Lily Liam Lucy Marc Maria Maya Mia Nadia Nathan Nina Noah "
    "Nora Olga Oliver Omar Paula Peter Rosa Ruth Samuel Sara Simon Sofia Thomas Tina Victor Vera Wendy William Zoe"
).split()

_WHOLE = {  # texts whose sense no rule can find
    "BEERALEMALT LIQUORS": "Beer and ale",
    "DAIRY CASE 100% PURE JUICE - O": "Orange juice",
    "DAIRY CASE 100% PURE JUICE OTH": "Fruit juice",
    "DAIRY CASE FRUIT DRINKS (NO JU": "Fruit drinks",
    "DAIRY CASE JUICE DRNK UNDER 10": "Juice drinks",
    "DAIRY CASE TEA WITH SUGAR OR S": "Sweet iced tea",
    "DAIRY CASE TEA NO SUGAR OR SWE": "Unsweetened iced tea",
    "FLUID MILK WHITE ONLY": "Milk",
    "FRZN ICE": "Ice",
    "ICE - CRUSHED/CUBED": "Ice cubes",
    "ICE CREAM/MILK/SHERBTS": "Ice cream",
    "HAND/BODY/FACIAL PRODUCTS": "Skin care",
    "IWS SINGLE CHEESE": "Cheese slices",
    "MEXICAN SAUCESSALSAPICANTEE": "Mexican salsa",
    "NON-CRBNTD DRNKING/MNERAL WATE": "Still water",
    "NON-CARB FLVRD DRNKNG/MNRL WAT": "Flavored water",
    "PLSTC CTLRYTBLCLTHSTTHPKSST": "Plastic cutlery",
    "PRIMAL": "Beef cuts",
    "SEMI-SOLID SALAD DRESSING MAY": "Mayonnaise",
    "SGL SV/VEND MACH SNACKS CHIP/P": "Single-serve snacks",
    "STICKS/ENROBED": "Ice cream bars",
    "VEGETABLE/SALAD OIL": "Vegetable oil",
    "WATER - CARBONATED/FLVRD DRINK": "Water",
    "SNKS/CKYS/CRKR/CNDY": "Snacks",
    "SINGLE SERVE FRUIT/NUT": "Fruit and nut snacks",
    "TV/MOVIE-MAGAZINE": "TV magazine",
    "MARGARINE: TUBS AND BOWLS": "Margarine tubs",
    "EGGS - X-LARGE": "Extra large eggs",
    "REFRIGERATED COOKIES-CHUB": "Cookie dough",
    "REFRIGERATED COOKIES-SEASONAL": "Cookie dough",
    "MALTED MLK/SYRUP/PWDRS (EGGNOG": "Malted milk",
    "TOILET TISSUE": "Toilet paper",
    "COLD AND FLU": "Cold and flu remedies",
    "CARDS EVERYDAY": "Greeting cards",
    "CARDS SEASONAL": "Seasonal cards",
    "PNT BTR/JELLY/JAMS": "Peanut butter and jam",
    "FD WRAPS/BAGS/TRSH BG": "Food wraps and bags",
    "FRZN MEAT/MEAT DINNERS": "Frozen dinners",
    "DRY BN/VEG/POTATO/RICE": "Rice and beans",
    "CONVENIENT BRKFST/WHLSM SNACKS": "Breakfast snacks",
    "BABY HBC": "Baby care",
    "SALD DRSNG/SNDWCH SPRD": "Salad dressing",
    "BAKED BREAD/BUNS/ROLLS": "Bread and buns",
    "CRACKERS/MISC BKD FD": "Crackers",
    "HEAT/SERVE": "Ready meals",
    "HISPANIC": "Hispanic foods",
    "APPAREL": "Clothing",
    "SPRING/SUMMER SEASONAL": "Summer goods",
    "FALL AND WINTER SEASONAL": "Winter goods",
    "BEERALE -NON ALCOHOLIC": "Alcohol-free beer",
    "BEERS/ALES": "Beer and ale",
    "TORTILLA/NACHO CHIPS": "Tortilla chips",
    "YOGURT NOT MULTI-PACKS": "Yogurt",
    "CANDY BAGS-CHOCOCLATE": "Chocolate candy",
    "CANDY BAGS-NON CHOCOLATE": "Bagged candy",
    "SEASONAL CANDY BAGS-CHOCOLATE": "Seasonal chocolate candy",
    "PREMIUM - MEAT": "Premium hot dogs",
    "ECONOMY - MEAT": "Hot dogs",
    "FRZN VEGETABLE/VEG DSH": "Frozen vegetables",
    "FROZEN PIE/DESSERTS": "Frozen desserts",
    "PWDR/CRYSTL DRNK MX": "Drink mixes",
    "VEGETABLES - SHELF STABLE": "Canned vegetables",
    "VEGETABLES - ALL OTHERS": "Vegetables",
    "MEAT - SHELF STABLE": "Canned meat",
    "FRUIT - SHELF STABLE": "Canned fruit",
    "SEAFOOD - SHELF STABLE": "Canned seafood",
    "PEPPERS-ALL": "Peppers",
    "HOUSEHOLD CLEANG NEEDS": "Household cleaners",
    "MAINSTREAM WHEAT/MULTIGRAIN BR": "Wheat bread",
    "SALAD BAR FRESH FRUIT": "Fresh fruit",
    "ASEPTIC PACK JUICE AND DRINKS": "Juice boxes",
    "ISOTONIC DRINKS SINGLE SERVE": "Sports drinks",
    "ISOTONIC DRINKS": "Sports drinks",
    "CANISTER POTATO/TORT CHIPS": "Potato crisps",
    "BUTTER SPRAY CRACKER (RITZ/CLU": "Butter crackers",
    "SS ECONOMY ENTREES/DINNERS ALL": "Frozen entrees",
    "BABY FOOD JUNIOR ALL BRANDS": "Junior baby food",
    "REFRIGERATED BISCUITS REGULAR": "Refrigerated biscuits",
    "FLUID MILK PRODUCTS": "Milk",
    "SOUR CREAMS": "Sour cream",
    "SW GDS:DONUTS": "Donuts",
    "ORGANICS FRUIT & VEGETABLES": "Organic produce",
    "MISC. FEMININE HYGIENE": "Feminine hygiene",
    "MISC. DAIRY": "Chilled dairy",
    "MEAT - MISC": "Frozen meat",
    "MAGAZINE": "Magazines",
}
_SHORT = {
    "FRZN": "frozen", "FRZ": "frozen", "SFT": "soft", "DRNK": "drinks", "DRNKS": "drinks", "BTL": "bottle", "CND": "canned",
    "CAN": "canned", "DNRS": "dinners", "DNR": "dinner", "MLK": "milk", "SNGL": "single", "SRV": "serve", "CHIX": "chicken",
    "CHICK": "chicken", "SPECILATY": "specialty", "GRND": "ground", "FLVR": "flavored", "FLVRD": "flavored", "CATFD": "cat food",
    "DOGFD": "dog food", "VEG": "vegetables", "BRD": "breaded", "BR": "bread", "BKFST": "breakfast", "BRKFST": "breakfast",
    "WHT": "white", "CHOC": "chocolate", "CHOCOCLATE": "chocolate", "REFRGRATD": "refrigerated", "REFRIG": "refrigerated",
    "PWDR": "powder", "SALD": "salad", "DRSNG": "dressing", "SNDWCH": "sandwich", "SPRD": "spread", "JCE": "juice",
    "CONC": "concentrate", "MXS": "mixes", "MIXS": "mixes", "PKLD": "pickled", "PKGD": "packaged", "TISS": "tissue", "FD": "food",
    "HYGN": "hygiene", "FEM": "feminine", "CNTRL": "control", "SYRP": "syrup", "SWEETNERS": "sweeteners", "SAUS": "sausage",
    "PREP": "prepared", "SHLSTRP": "", "PLSTC": "plastic", "HANDKE": "", "CRMD": "creamed", "INSTORE": "fresh",
    "TORT": "tortilla", "MLT-PK": "multipack", "PCKGD": "packaged", "GDS": "goods", "MICRWV": "microwave", "DECAF": "decaf",
    "SHERBTS": "sherbet", "HLTH": "health", "SPLY": "supplies", "WTR": "water", "WMN": "women's", "CHKN": "chicken",
    "POULTRY": "poultry", "DISHWASH": "dishwasher", "BBQ": "BBQ", "TV": "TV", "ACC": "accessories", "SWTS": "sweets",
}  # fmt: skip
_DROPPED = frozenset(
    "ALL OTHER OTHERS MISC MISCELLANEOUS EX EXC EXCP INCL CARB SS WM FM NA BULK PREPACK PKG PREPORTND IQF RTS FS WHL SV UNDER OVER PROOF "
    "PK LB OZ CT ML LTR LITER UPC HBC GM NFL MLB NBA SALES TRANS ONLY WT EXACT AGE RESTRICTED SPHE ORDER ITEM ITEMS "
    "PRODUCT PRODUCTS MAINSTREAM ECONOMY ENHANCED EXTERNAL INTERNAL PLAIN BAGGED BOXED VALUE NOT GENERAL".split()
)
_BARE = frozenset(  # words that say how, not what: the category must say what
    "PREMIUM TRADITIONAL LEAN CHOICE SELECT ANGUS ECONOMY VALUE MAINSTREAM REGULAR FRESH RAW BLENDS ENHANCED NATURAL SMOKED COOKED PINTS "
    "SPECIALTY ORGANIC GARDEN PLUS PROMOTIONAL SEASONAL SUPER DELUXE BONELESS WHOLE RIBS LINKS PATTIES ROLLS BREAST THIGHS VARIETY DRY "
    "CANNED FROZEN IMPORTED DOMESTIC LARGE MEDIUM SMALL LIGHT BETTER FOR YOU EXTERNAL INTERNAL PARTS STICKS CONES SINGLE STRIPS CUPS "
    "FAMILY KIDS ADULT WHITE RED GREEN YELLOW INSTANT FLAVORED FLVR FLVRD MEAT MULTI-PACK RAW".split()
)
_KINDS_FIRST = frozenset(  # "APPLES GALA": the till names the kind before the sort
    "APPLES ONIONS GRAPES PEPPERS NOODLES POTATOES BEANS TOMATOES CARROTS PEARS PEACHES PLUMS MUSHROOMS SPAGHETTI MACARONI LETTUCE ORANGES "
    "CHERRIES NUTS MELONS SQUASH MARGARINE SAUSAGE VINEGAR".split()
)
_SILENT_HEADS = frozenset({"MEAT", "PREP FD", "SW GDS", "CHIX", "SEAFOOD", "GRND BEEF"})
_LOOSE_ENDS = frozenset("and with of for in or on the a w excl up to no non by".split())
_WORD = re.compile(r"[A-Za-z]+(?:['’-][A-Za-z]+)*")
_TRUNCATED = 30  # the data cuts its texts here
_WORDS_AT_MOST = 4


@lru_cache(1 << 14)
def readable(text: str, category: str = "") -> str:
    """A till text as a shop would print it: "SOFT DRINKS 12/18&15PK CAN CAR" is "Soft drinks".

    No digits, slashes or brackets, four words at most, the first with a capital. ``category`` (also as the till has
    it) says what a bare adjective is about: "PREMIUM" of "COFFEE" is "Premium coffee". "" where nothing is left.
    """
    known = _WHOLE.get(text.strip().upper())
    if known:
        return known
    words = _words(text)
    if category and all(word.upper() in _BARE for word in words):
        about = readable(category)
        if about:
            have = {word.lower() for word in words}
            words += [word if word.isupper() and len(word) > 1 else word.lower() for word in about.split() if word.lower() not in have]
    return _sentence(words)


@lru_cache(1 << 14)
def product_name(kind: str, category: str, brand: str) -> str:
    """A product's name from its type and brand: "Soft drinks" of a national brand, "Own-brand soft drinks" of the shop's; "" if unnamed."""
    name = readable(kind, category) or readable(category)
    if not name or brand != "Private":
        return name
    first, _, rest = name.partition(" ")
    lowered = first if first.isupper() else first.lower()
    return f"Own-brand {lowered} {rest}".strip()


def draw(*parts: object) -> float:
    """A number in [0, 1) that depends on the parts alone, evenly spread."""
    digest = hashlib.blake2b("\x1f".join(map(str, parts)).encode(errors="surrogatepass"), digest_size=7).digest()
    return int.from_bytes(digest, "big") / (1 << 56)


def first_name(customer: str) -> str:
    """The made-up first name of a customer."""
    return FIRST_NAMES[int(draw("first name", customer) * len(FIRST_NAMES))]


def _words(text: str) -> list[str]:
    words = _in_order(text)
    for stop in ("ON", "IN", "FOR"):
        if stop in words[1:]:
            words = words[: words.index(stop, 1)]
    if len(words) > 1 and words[0] in _KINDS_FIRST and "AND" not in words:
        words = [*words[1:], words[0]]
    return words


def _in_order(text: str) -> list[str]:
    """The words with what follows a colon or a dash, the sort, before the kind."""
    rest = text.split("(")[0].strip().upper()
    whole = len(text) < _TRUNCATED or "(" in text
    head, colon, tail = (part.strip() for part in rest.partition(":"))
    if colon:
        return _plain(tail) if head in _SILENT_HEADS else _plain(tail) + _plain(head)
    if rest.endswith("-MAGAZINE"):
        return [*_plain(rest.removesuffix("-MAGAZINE").replace("WOMEN S", "WOMEN'S")), "magazine"]
    rest = re.sub(r"^SEAFOOD-(FRZ-|FRE-)?", "", rest)
    head, dash, tail = (part.strip() for part in re.sub(r"\s*-\s+|\s+-\s*", " - ", rest).partition(" - "))
    if dash and head:
        front, back = _plain(tail, cut=not whole), _plain(head)
        return front + back if len(front) == 1 else back
    return _plain(rest, cut=not whole)


def _plain(text: str, cut: bool = False) -> list[str]:
    """The words up to the first thing that is none: a number, the second of two alternatives, a percent sign."""
    tokens = text.replace(" & ", " AND ").replace(" W/", " ").replace(".", " ").split()
    if cut and "/" not in text and "&" not in text and len(tokens) > 2 and tokens[-1] not in _SHORT and len(tokens[-1]) < 5:
        tokens.pop()  # half a word
    words: list[str] = []
    for token in tokens:
        alternatives = re.split(r"[/&,;+]", token)
        bare = alternatives[0]
        if re.search(r"\d|[%$#]", bare) or not bare.isascii():
            if words:
                break
            continue
        found = _WORD.search(bare)
        if found and found.group() not in _DROPPED:
            words += _SHORT.get(found.group(), found.group()).split()
        if len(alternatives) > 1 and words:
            break
    return words


def _sentence(words: list[str]) -> str:
    kept: list[str] = []
    for word in words[:_WORDS_AT_MOST]:
        shown = word if word in ("BBQ", "TV") else word.lower()
        if shown not in kept:
            kept.append(shown)
    while kept and (kept[-1] in _LOOSE_ENDS or len(kept[-1]) == 1):
        kept.pop()
    while kept and kept[0] in _LOOSE_ENDS:
        kept.pop(0)
    text = " ".join(kept)
    return text[:1].upper() + text[1:]
