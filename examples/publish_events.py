"""Publish a shop's events: a customer who agrees to mail, and then orders.

Run it against a Kafka whose topics exist (``mailtide up`` makes them and starts a Kafka where you have none):

    MAILTIDE_KAFKA=127.0.0.1:9092 python examples/publish_events.py

With Mailtide's own Kafka the address is ``kafka`` in ``.mailtide/run/endpoints.json``. All that it needs is ``pip install kafka-python``:
nothing here imports Mailtide, and any other client of Kafka does as well.

What to copy:

- the key is the customer's id, so that one customer's events stay in their order on one partition. kafka-python hashes keys as the Java
  client does (murmur2), which is where Mailtide looks for that customer; from any other partition it moves an event once, and counts it;
- ``messageId`` is the same when an event is sent again: it counts once;
- times are RFC 3339 in UTC, of when it happened, not of when it was sent;
- marketing mail needs the consent that ``identify`` tells.
"""

from __future__ import annotations

import json
import os
import uuid
from datetime import UTC, datetime
from typing import Any

from kafka import KafkaProducer

KAFKA = os.environ.get("MAILTIDE_KAFKA", "127.0.0.1:9092")
TOPIC = os.environ.get("MAILTIDE_KAFKA_PREFIX", "") + "customer.events"


def event(customer: str, **body: Any) -> dict[str, Any]:
    """One event after the Segment spec, with what every event needs."""
    return {"messageId": str(uuid.uuid4()), "userId": customer, "timestamp": datetime.now(UTC).isoformat(), **body}


EVENTS = [
    event(
        customer,
        type="identify",
        traits={"email": f"{name.lower()}@example.com", "firstName": name, "timezone": "Europe/Paris", "consent": {"marketing": True}},
    )
    for customer, name in (("c-1", "Maria"), ("c-2", "Amin"), ("c-3", "Ines"))
] + [
    event(
        "c-1",
        type="track",
        event="Order Completed",
        properties={
            "order_id": "o-1001",
            "total": 31.5,
            "currency": "USD",
            "products": [
                {"product_id": "p-7", "name": "Dark Roast Coffee", "category": "Coffee", "price": 9.5, "quantity": 2},
                {"product_id": "p-9", "name": "Rye Bread", "category": "Bakery", "price": 12.5, "quantity": 1},
            ],
        },
    )
]


def main() -> None:
    """Send them all and wait until Kafka has them."""
    producer = KafkaProducer(
        bootstrap_servers=KAFKA.split(","),
        acks="all",
        key_serializer=str.encode,
        value_serializer=lambda value: json.dumps(value).encode(),
    )
    try:
        sent = [producer.send(TOPIC, key=str(each["userId"]), value=each) for each in EVENTS]
        for each, future in zip(EVENTS, sent, strict=True):
            where = future.get(timeout=30)
            print(f"{each.get('event', each['type'])} of {each['userId']}: partition {where.partition}, offset {where.offset}")
    finally:
        producer.close()


if __name__ == "__main__":
    main()
