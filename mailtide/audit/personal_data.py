"""What stands readable in a record, and whether it is somebody's data."""

from __future__ import annotations

import re
import string
from collections.abc import Iterator
from typing import Any

import msgspec

_DOMAIN = re.compile(rb"@[A-Za-z0-9-]++(?:\.[A-Za-z0-9-]++)++")
_LOCAL = (string.ascii_letters + string.digits + "._%+-").encode()  # what may stand before the @
_MESSAGE_ID = re.compile(rb"[0-9a-f]{32}@")
_FIELD = re.compile(rb'"(?:email|firstName|first_name|birthday)"\s*:')
_unpack = msgspec.msgpack.Decoder().decode
_NOT_PACKED = (msgspec.DecodeError, UnicodeDecodeError)  # the second where numbers begin like a text


def personal(key: bytes, value: bytes) -> str:
    """Which kind of personal data stands readable in a record, "" for none.

    Our Message-IDs are none, nor is the shop's own id of the customer, as key or in ``customer``, though a shop may take addresses for ids.
    """
    for address in set(_addresses(value)):
        if not _MESSAGE_ID.match(address) and address not in key and b'"customer":"%b"' % address not in value:
            return "an email address"
    return "a profile's field" if _FIELD.search(value) else ""


def _addresses(value: bytes) -> Iterator[bytes]:
    """What looks like one, from left to right; each byte is looked at a few times at most, however long the text is.

    From each @ outwards: a search from each letter on for the @ behind it takes a long id's length squared.
    """
    start = 0  # behind the address before, or the @ before where that had nothing to its left
    for domain in _DOMAIN.finditer(value):
        before = value[start : domain.start()]
        local = before[len(before.rstrip(_LOCAL)) :]
        if local:
            yield local + domain.group()
        start = domain.end() if local else domain.start() + 1


def written(state: bytes) -> bytes:
    """The texts of a customer's state, a line each, also those packed within it; all of its bytes where it is no MessagePack.

    The rest is packed numbers, among which a row of half floats now and then
    looks like ``o.f@o.f``.
    """
    try:
        return b"\n".join(_texts(_unpack(state)))
    except _NOT_PACKED:
        return state


def _texts(value: Any) -> Iterator[bytes]:
    if isinstance(value, str):
        yield value.encode()
    elif isinstance(value, list):
        for each in value:
            yield from _texts(each)
    elif isinstance(value, dict):
        for name, each in value.items():
            yield from _texts(name)
            yield from _texts(each)
    elif isinstance(value, bytes) and value:
        try:
            packed = _unpack(value)
        except _NOT_PACKED:
            return
        if isinstance(packed, list | dict):
            yield from _texts(packed)
