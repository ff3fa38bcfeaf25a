"""What is known of one customer, from the topics alone."""

from __future__ import annotations

import time
from typing import Any

from models.triggers.passes import describe
from schemas.config import Settings
from schemas.errors import UNREADABLE, MailtideError, StoreError
from schemas.mail import Delivery, Intent
from schemas.topics import CLUSTERS, CUSTOMERS, DELIVERIES, EVENTS, INTENTS
from transport.blocking import decoded, partition_count, partition_of, records


def show(settings: Settings, customer: str) -> dict[str, Any]:
    """Counts, features, cluster, predictions, open timers, and every intent with its outcome and reason.

    Raises MailtideError where nothing is known of that id.
    """
    kafka = settings.kafka
    count = partition_count(kafka, EVENTS)
    if not count:
        raise MailtideError("the topics are not there; run `mailtide topics create`")
    place = partition_of(customer, count)
    key = customer.encode()
    state: bytes | None = None
    for record in records(kafka, CUSTOMERS, place):
        if record.key == key:
            state = record.value
    intents = list(decoded(kafka, INTENTS, Intent, place, key))
    outcomes = {delivery.intent_id: delivery for delivery in decoded(kafka, DELIVERIES, Delivery, place, key)}
    if state is None and not intents:
        raise MailtideError(f"customer {customer!r} is not known here: no event of theirs was accepted")
    now = time.time()
    try:
        known = describe(state, now) if state is not None else {}
    except UNREADABLE as error:
        raise StoreError(
            f"the state of customer {customer!r} on {kafka.topic(CUSTOMERS)} partition {place} can't be read: {error}"
        ) from error
    seen = {intent.intent_id: intent for intent in intents}
    return {
        "customer": customer,
        **known,
        "cluster_description": _description(settings, str(known.get("cluster", ""))),
        "intents": [
            {
                "intent_id": intent.intent_id,
                "trigger": intent.trigger,
                "occurrence": intent.occurrence,
                "due": intent.due,
                "expires": intent.expires,
                "cluster": intent.cluster,
                "status": outcomes[intent.intent_id].status if intent.intent_id in outcomes else "open",
                "reason": outcomes[intent.intent_id].reason if intent.intent_id in outcomes else None,
                "message_id": outcomes[intent.intent_id].message_id if intent.intent_id in outcomes else None,
                "at": outcomes[intent.intent_id].at if intent.intent_id in outcomes else None,
            }
            for intent in seen.values()
        ],
    }


def _description(settings: Settings, cluster: str) -> str:
    from schemas.release import Snapshot

    newest: Snapshot | None = None
    for snapshot in decoded(settings.kafka, CLUSTERS, Snapshot):
        newest = snapshot if newest is None or snapshot.epoch >= newest.epoch else newest
    for known in newest.clusters if newest else ():
        if known.id == cluster:
            return known.description
    return ""
