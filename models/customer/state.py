"""What intake keeps of one customer, and its bytes.

MessagePack arrays without names. What most events leave alone lies inside as
bytes of its own and is decoded when it is asked for, so that a page view pays
for neither the kinds of goods nor the message ids. Everything is rounded when
it changes, never when it is written: any batching of the same events leaves
the same bytes. The record carries the last applied offset, so state and offset
can't disagree. No name, address or birthday is in it.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, NamedTuple

import msgspec

from schemas.errors import ForeignState
from schemas.mail import Facts
from schemas.topics import CUSTOMERS

VERSION = 2  # of the bytes: one more with each change of what follows
MOST_CATEGORIES, KEPT_CATEGORIES = 36, 30  # kinds of goods: past the first the least bought go, down to the second
RECENT = 64  # message ids kept at least
RECENT_SECONDS = 86400.0  # and at least those of the last day
RECENT_MOST = 32768  # and never more (one each 3 s, all day long): a producer gone wild must not grow the state without end
PENDING = 2  # decisions of the visit model that wait for their outcome
NEVER = math.inf
GRID = 256  # a decayed count of 1
BOUGHT_BITS = 1024  # of the sieve of kinds ever bought

_WEEKDAYS, _DAYPARTS = struct.Struct("<7f"), struct.Struct("<4f")


class Category(NamedTuple):
    """One kind of goods: decayed buying-days in 256ths (half-life 90 days, as of ``last``, seconds), and its gaps in hours.

    It lies in the state as a row of bytes, so that an order unpacks only the kinds that it holds. Behind the numbers may lie
    the product bought last (id, name, price), where the rhythm is known well enough to speak of it.
    """

    buys: int
    days: int
    gap_sum: int
    gap_squares: int
    last: int

    @classmethod
    def of(cls, row: bytes) -> Category:
        """The numbers of a row."""
        return cls._make(numbers(row))


_CATEGORY = struct.Struct("<HHIII")
WIDTH = _CATEGORY.size  # of a row without a product
numbers = _CATEGORY.unpack_from
MOST_COUNT, MOST_GAPS = 2**16 - 1, 2**32 - 1


def row(count: int, days: int, gap_sum: int, gap_squares: int, last: int) -> bytes:
    """The numbers as bytes, clamped to their width; of ``count`` the caller has seen to that."""
    return _CATEGORY.pack(count, min(days, MOST_COUNT), min(gap_sum, MOST_GAPS), min(gap_squares, MOST_GAPS), last)


def product_of(found: bytes) -> tuple[str, str, float | None] | None:
    """Id, name and price of the product bought last of a kind, where it is kept."""
    return _product(found[WIDTH:]) if len(found) > WIDTH else None


class UnpackedState:
    """A field of the state that is decoded when it is asked for, into the instance's own ``__dict__``."""

    def __init__(self, kind: Any, empty: Callable[[], Any]) -> None:
        self.decode, self.empty = msgspec.msgpack.Decoder(kind).decode, empty

    def __set_name__(self, owner: type, name: str) -> None:
        self.name, self.packed = name, f"packed_{name}"

    def __get__(self, state: Any, owner: type | None = None) -> Any:
        data = getattr(state, self.packed)
        value = state.__dict__[self.name] = self.decode(data) if data else self.empty()
        return value


class Mix(msgspec.Struct, array_like=True, gc=False):
    """Sums over the decayed counts w of all kinds, as of ``last`` (seconds): sum of w, and of w ln w. Their entropy in constant time."""

    last: int = 0
    total: float = 0.0
    logs: float = 0.0


class Timer(msgspec.Struct, array_like=True, gc=False):
    """A trigger that waits: fires at ``at``; ``since`` is the event's time, ``occurrence`` makes the intent's id; ``packed``: its facts."""

    at: float
    trigger: str
    occurrence: str
    since: float
    packed: bytes
    offset: int = -1  # of the event that began the wait

    @property
    def facts(self) -> Facts:
        """All that the mail may state."""
        return _facts(self.packed)


class OpenIntent(msgspec.Struct, array_like=True, gc=False):
    """An intent that fired: its condition is watched until ``expires``, orders are attributed until ``until``."""

    intent_id: str
    trigger: str
    since: float
    expires: float
    until: float
    fired: float
    category: str = ""
    gone: bool = False


class Pending(msgspec.Struct, array_like=True, gc=False):
    """A decision of the visit model: what was known (half floats), and the first visit after it (0: none yet)."""

    at: float
    packed: bytes
    returned: float = 0.0

    @classmethod
    def of(cls, at: float, values: Sequence[float]) -> Pending:
        """A decision made now."""
        return cls(at, struct.pack(f"<{len(values)}e", *values))

    @property
    def values(self) -> tuple[float, ...]:
        """The inputs as they were, to three digits."""
        return struct.unpack(f"<{len(self.packed) // 2}e", self.packed)


class StandingState(msgspec.Struct, array_like=True, gc=False):
    """Consent and objections, each with the time at which it was last said: a producer's older word, come late, undoes no newer one.

    ``mailbox`` is a keyless digest that only tells one address from another.
    """

    consent: bool = False
    address: bool = False
    unsubscribed: bool = False
    bounced: bool = False
    complained: bool = False
    timezone: str = ""
    locale: str = "en"
    mailbox: int = 0
    consent_at: float = 0.0
    subscribed_at: float = 0.0  # or unsubscribed
    mailbox_at: float = 0.0
    identified_at: float = 0.0


class Visits(msgspec.Struct, array_like=True, gc=False):
    """Days with activity: counts decayed as of ``last`` (half-lives 7, 30, 90 days), gaps in days, weekday and daypart profiles."""

    count: int = 0
    first: float = 0.0
    last: float = 0.0
    gap_sum: float = 0.0
    gap_squares: float = 0.0
    gap_last: float = 0.0
    gap_ew: float = 0.0
    week: float = 0.0
    month: float = 0.0
    quarter: float = 0.0
    packed_weekdays: bytes = bytes(_WEEKDAYS.size)
    packed_dayparts: bytes = bytes(_DAYPARTS.size)

    @property
    def weekdays(self) -> tuple[float, ...]:
        """Decayed visits by weekday, Monday first (half-life 120 days)."""
        return _WEEKDAYS.unpack(self.packed_weekdays)

    @property
    def dayparts(self) -> tuple[float, ...]:
        """Decayed visits by quarter of the day, from midnight."""
        return _DAYPARTS.unpack(self.packed_dayparts)

    def profile(self, weekdays: list[float], dayparts: list[float]) -> None:
        """Keep both, as single floats."""
        self.packed_weekdays, self.packed_dayparts = _WEEKDAYS.pack(*weekdays), _DAYPARTS.pack(*dayparts)


class Orders(msgspec.Struct, array_like=True, gc=False):
    """Orders: totals in currency units; what is decayed has a half-life of 90 days as of ``last``."""

    count: int = 0
    total: float = 0.0
    last: float = 0.0
    last_value: float = 0.0
    decayed: float = 0.0
    value: float = 0.0
    discount: float = 0.0
    coupons: float = 0.0
    own_brand: float = 0.0
    lines: float = 0.0
    refunded: float = 0.0  # time of the last refund
    last_lines: int = 0
    applied: bool = False  # a coupon lies in the basket of the order to come


class SentMail(msgspec.Struct, array_like=True, gc=False):
    """Engagement with email, and open support tickets."""

    opened: int = 0
    clicked: int = 0
    last: float = 0.0
    tickets: int = 0


class CustomerState(msgspec.Struct, array_like=True, dict=True):
    """All of it. Times are seconds since the epoch. What is ``packed`` is read and written under its name without that word."""

    version: int = VERSION
    offset: int = -1
    due: float = NEVER  # of the earliest timer or look, as of the last ``dump``
    counts: dict[str, int] = {}
    standing: StandingState = msgspec.field(default_factory=StandingState)
    visits: Visits = msgspec.field(default_factory=Visits)
    orders: Orders = msgspec.field(default_factory=Orders)
    mail: SentMail = msgspec.field(default_factory=SentMail)
    mix: Mix = msgspec.field(default_factory=Mix)
    cluster: str = ""
    chances: tuple[float, ...] = ()  # of a visit within 7, 14 and 30 days, at the last look
    look: float = NEVER  # when to look at the customer next
    wait: float = NEVER  # of the earliest timer, as of the last ``next_timer``
    newest: float = 0.0  # the latest event
    entered: dict[str, int] = {}  # trigger -> when it fired last
    packed_timers: bytes = b""
    packed_opens: bytes = b""
    packed_pending: bytes = b""
    packed_categories: bytes = b""
    bought: bytes = b""  # a bit for each kind ever bought, also of those forgotten: see ``ever_bought``
    ids: bytes = b""  # digests of message ids, 8 bytes each, oldest first
    ids_at: bytes = b""  # their times, 4 bytes each
    timers: ClassVar[Any] = UnpackedState(list[Timer], list)  # what waits
    opens: ClassVar[Any] = UnpackedState(list[OpenIntent], list)  # intents that fired lately
    pending: ClassVar[Any] = UnpackedState(list[Pending], list)  # decisions of the visit model whose outcome is not known
    categories: ClassVar[Any] = UnpackedState(dict[str, bytes], dict)  # rows of goods by name, in the order in which they were first bought

    @property
    def waiting(self) -> bool:
        """Whether there is a timer."""
        return bool(self.__dict__["timers"] if "timers" in self.__dict__ else self.packed_timers)

    @property
    def watched(self) -> bool:
        """Whether there is an intent that fired lately."""
        return bool(self.__dict__["opens"] if "opens" in self.__dict__ else self.packed_opens)

    def next_timer(self) -> float:
        """When something is due next; ``inf`` where nothing is."""
        if "timers" in self.__dict__:
            self.wait = min([timer.at for timer in self.timers], default=NEVER)
        return min(self.look, self.wait)


class _Head(msgspec.Struct, array_like=True, gc=False):
    """The first fields of a state: the rest of its bytes is skipped."""

    version: int
    offset: int
    due: float


class Sizes(NamedTuple):
    """Bytes of a state: all of them, of the message ids, of what waits and what fired, and the features' rest."""

    total: int
    ids: int
    open: int
    features: int


_decode = msgspec.msgpack.Decoder(CustomerState).decode
_encode = msgspec.msgpack.Encoder().encode
_head = msgspec.msgpack.Decoder(_Head).decode
_product = msgspec.msgpack.Decoder(tuple[str, str, float | None]).decode
_facts = msgspec.msgpack.Decoder(Facts).decode
pack = _encode  # of a timer's facts


def load(data: bytes) -> CustomerState:
    """State from its bytes. ForeignState where they are no state of this version, ``msgspec.DecodeError`` where they are torn."""
    return _decode(_checked(data))


def dump(state: CustomerState) -> bytes:
    """The bytes of a state: the same state has the same bytes."""
    state.due = state.next_timer()
    for name, value in state.__dict__.items():
        setattr(state, f"packed_{name}", _encode(value) if value else b"")
    return _encode(state)


def next_timer(data: bytes) -> float:
    """When something is due next by these bytes, without reading the rest."""
    return _head(_checked(data)).due


def applied_offset(data: bytes) -> int:
    """The last offset in these bytes, without reading the rest."""
    return _head(_checked(data)).offset


def sizes(data: bytes) -> Sizes:
    """Where the bytes of a state go."""
    state = load(data)
    ids = len(state.ids) + len(state.ids_at)
    waiting = len(state.packed_timers) + len(state.packed_opens)
    return Sizes(len(data), ids, waiting, len(data) - ids - waiting)


def _checked(data: bytes) -> bytes:
    if not data.startswith(_BEGIN):
        raise ForeignState(f"a state in {CUSTOMERS} is not of version {VERSION}: another Mailtide wrote it; see docs/operations.md")
    return data


_BEGIN = dump(CustomerState())[:4]  # the array's length and the version
