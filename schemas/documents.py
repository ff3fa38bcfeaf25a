"""The contracts as documents that other tools read: JSON Schema 2020-12 and AsyncAPI 3.0, written from the types.

``python -m schemas.documents [FOLDER]`` writes ``docs/schemas/*.json`` and ``docs/asyncapi.json``;
a test compares them with what the code says.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import msgspec

from schemas import mail, release, topics
from schemas.events import LONGEST_CUSTOMER, MAX_BYTES, TRACKED, Properties

DIALECT = "https://json-schema.org/draft/2020-12/schema"

# Topic -> (name of the document, its type, what the record's key is). The events' own schema is written by hand below.
CONTRACTS: dict[str, tuple[str, Any, str]] = {
    topics.INTENTS: ("intent", mail.Intent, "customer"),
    topics.DRAFTS: ("draft", mail.Draft, "customer"),
    topics.GATE: ("gate", mail.GateRecord, "customer, intent id or 'watermark'"),
    topics.CLAIMS: ("claim", mail.Claim, "customer"),
    topics.DELIVERIES: ("delivery", mail.Delivery, "customer"),
    topics.FEEDBACK: ("feedback", mail.Feedback, "customer"),
    topics.CLUSTERS: ("clusters", release.Snapshot, "snapshot id"),
    topics.RELEASES: ("release", release.Release, "cluster id"),
    topics.EXAMPLES: ("example", mail.Example, "cluster id"),
}


def json_schemas() -> dict[str, dict[str, Any]]:
    """Every document by name; each stands alone."""
    found = {"event": event_schema()}
    for name, kind, _ in CONTRACTS.values():
        found[name] = {"$schema": DIALECT, **msgspec.json.schema(kind)}
    return found


def event_schema() -> dict[str, Any]:
    """What producers may write to ``customer.events``. Wider than the types: careless properties are dropped, not refused."""
    (_,), components = msgspec.json.schema_components((Properties,), ref_template="#/$defs/{name}")
    text, time = {"type": ["string", "null"]}, {"type": ["string", "null"], "format": "date-time"}
    identity = {"type": ["string", "number", "null"]}
    customer = {**identity, "maxLength": LONGEST_CUSTOMER}
    return {
        "$schema": DIALECT,
        "title": "Event",
        "description": f"One event after the Segment spec, at most {MAX_BYTES} bytes of UTF-8 JSON. Unknown fields are welcome.",
        "type": "object",
        "properties": {
            "messageId": {**identity, "description": "the same one counts once for a customer"},
            "type": {"type": "string", "description": "track, identify, page, in any case; any other counts as activity"},
            "event": {**text, "description": "understood: " + ", ".join(TRACKED) + "; any other counts as activity"},
            "userId": {**customer, "description": "the customer"},
            "anonymousId": {**customer, "description": "the customer where there is no userId"},
            "timestamp": {**time, "description": "when it happened, RFC 3339; at most 5 minutes ahead"},
            "originalTimestamp": {**time, "description": "where there is no timestamp"},
            "receivedAt": {**time, "description": "where there is neither"},
            "properties": {"$ref": "#/$defs/Properties"},
            "traits": {
                "type": ["object", "null"],
                "description": "of identify; any may be told. What was said last of each counts, by the events' times; null takes it away",
                "properties": {
                    "email": text,
                    "firstName": text,
                    "locale": text,
                    "timezone": {**text, "description": "an IANA name"},
                    "birthday": text,
                    "consent": {
                        "type": ["object", "null"],
                        "description": "only a plain true is a yes; null, false, or another value of marketing takes it away",
                        "properties": {"marketing": {"type": "boolean"}},
                    },
                },
            },
        },
        "allOf": [
            {"anyOf": [{"required": ["userId"]}, {"required": ["anonymousId"]}]},
            {"anyOf": [{"required": ["timestamp"]}, {"required": ["originalTimestamp"]}, {"required": ["receivedAt"]}]},
            {"if": {"properties": {"type": {"const": "track"}}}, "then": {"required": ["event"]}},
        ],
        "$defs": components,
    }


def asyncapi() -> dict[str, Any]:
    """The topics as channels; what applications send to Mailtide and what they may receive."""
    channels: dict[str, Any] = {}
    operations: dict[str, Any] = {}
    for topic in topics.TOPICS:
        name, _, key = CONTRACTS.get(topic.name, ("event", None, "any"))
        if topic.name not in CONTRACTS and topic.name != topics.EVENTS:
            continue
        channels[topic.name] = {
            "address": topic.name,
            "description": topic.note,
            "messages": {
                name: {
                    "contentType": "application/json",
                    "payload": {"$ref": f"schemas/{name}.json"},
                    "bindings": {"kafka": {"key": {"type": "string", "description": key}}},
                }
            },
            "bindings": {"kafka": {"topicConfiguration": {"cleanup.policy": [topic.cleanup], "retention.ms": topic.retention_ms}}},
        }
        action = "receive" if topic.name == topics.EVENTS else "send"  # as Mailtide sees it
        operations[f"{action} {name}"] = {"action": action, "channel": {"$ref": f"#/channels/{topic.name}"}}
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "Mailtide",
            "version": "0.1.0",
            "description": "Customer events in on Kafka, the right email out. A prefix may stand before every topic.",
        },
        "defaultContentType": "application/json",
        "channels": channels,
        "operations": operations,
    }


def files() -> dict[str, str]:
    """Path under docs -> content."""
    made = {f"schemas/{name}.json": schema for name, schema in json_schemas().items()}
    return {
        path: json.dumps(content, indent=1, ensure_ascii=False) + "\n" for path, content in {**made, "asyncapi.json": asyncapi()}.items()
    }


def write(folder: Path) -> None:
    """Write all of them."""
    for path, content in files().items():
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(content, encoding="utf-8")


if __name__ == "__main__":
    write(Path(sys.argv[1] if len(sys.argv) > 1 else "docs"))
