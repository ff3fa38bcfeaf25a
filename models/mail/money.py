"""A price as a mail says it."""

from __future__ import annotations

from decimal import ROUND_HALF_UP, Decimal

from models.mail.slots import clean
from schemas.mail import Product

SYMBOLS = {"USD": "$", "EUR": "€", "GBP": "£", "JPY": "¥", "INR": "₹", "CAD": "CA$", "AUD": "A$", "BRL": "R$", "KRW": "₩"}
WHOLE = {"JPY", "KRW"}  # currencies without a smaller unit


def price(product: Product, fallback: str) -> str:
    """The product's price as the event gave it, in its currency; empty where there is none.

    >>> price(Product("p", "Bread", price=2.5, currency="USD"), "EUR")
    '$2.50'
    """
    return amount(product.price, product.currency or fallback)


def amount(value: float | None, currency: str) -> str:
    """The same of any sum."""
    if value is None or not 0.0 <= value < 1e12:
        return ""
    currency = currency.upper()
    exactly = Decimal(repr(float(value)))
    places = 0 if currency in WHOLE else 2
    exact = max(places, -int(exactly.normalize().as_tuple().exponent))
    # More than four decimals are the noise of binary fractions, not a price.
    exactly = exactly.quantize(Decimal(1).scaleb(-(exact if exact <= 4 else places)), ROUND_HALF_UP)
    symbol = SYMBOLS.get(currency)
    return f"{symbol}{exactly:,}" if symbol else f"{clean(currency)} {exactly:,}".strip()
