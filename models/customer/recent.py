"""Which message ids a customer's events had lately, so that a producer's repeat counts once."""

from __future__ import annotations

import hashlib
import struct

from models.customer.state import RECENT, RECENT_MOST, RECENT_SECONDS, CustomerState

WIDTH = 8  # bytes of a digest
_TIME = struct.Struct("<I")


def repeated(state: CustomerState, message_id: str, at: float) -> bool:
    """Whether this id was seen among the last 64, or within the last day of the customer's events; remembers it."""
    digest = hashlib.blake2b(message_id.encode("utf-8", "replace"), digest_size=WIDTH).digest()
    place = state.ids.find(digest)
    while place % WIDTH and place >= 0:  # across two digests: no hit
        place = state.ids.find(digest, place + 1)
    if place >= 0:
        return True
    state.ids += digest
    state.ids_at += _TIME.pack(min(int(max(at, 0.0)), 0xFFFFFFFF))
    if len(state.ids) > RECENT * WIDTH:
        _forget(state)
    return False


def _forget(state: CustomerState) -> None:
    """Let the oldest go that is neither among the last nor of the last day."""
    count = len(state.ids) // WIDTH
    spare, gone = count - RECENT, 0
    limit = state.newest - RECENT_SECONDS - 1
    while gone < spare and (count - gone > RECENT_MOST or _TIME.unpack_from(state.ids_at, gone * _TIME.size)[0] < limit):
        gone += 1
    if gone:
        state.ids, state.ids_at = state.ids[gone * WIDTH :], state.ids_at[gone * _TIME.size :]
