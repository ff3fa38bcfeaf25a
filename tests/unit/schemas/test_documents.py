"""The documents under docs/ say what the code says, and hold for what the code writes."""

from __future__ import annotations

import json

import jsonschema
import pytest

from schemas import documents
from schemas.events import TRACKED
from schemas.mail import Facts, Intent, Source, encode
from tests.paths import ROOT

DOCS = ROOT / "docs"


@pytest.mark.parametrize("path", sorted(documents.files()))
def test_the_files_are_true(path: str) -> None:
    assert (DOCS / path).read_text(encoding="utf-8") == documents.files()[path], "run: python -m schemas.documents"


def test_every_schema_is_one() -> None:
    for schema in documents.json_schemas().values():
        jsonschema.Draft202012Validator.check_schema(schema)


def test_the_contracts_example_fits_and_nonsense_does_not() -> None:
    validator = jsonschema.Draft202012Validator(documents.event_schema())
    example = {
        "messageId": "m",
        "type": "track",
        "event": TRACKED[6],
        "userId": "c-42",
        "timestamp": "2026-11-23T10:15:00Z",
        "properties": {"order_id": "o-7", "total": 31.5, "products": [{"product_id": "p-1", "price": 2.5, "quantity": 1}]},
    }
    validator.validate(example)
    for missing in ("userId", "timestamp", "event"):
        assert not validator.is_valid({k: v for k, v in example.items() if k != missing})


def test_what_is_written_fits_its_schema() -> None:
    intent = Intent(
        "i", "c", "welcome", "1", "2026-01-01T00:00:00Z", "2026-01-02T00:00:00Z", "c0", Facts(), Source("t", 0, 1), "2026-01-01T00:00:00Z"
    )
    validator, body = jsonschema.Draft202012Validator(documents.json_schemas()["intent"]), json.loads(encode(intent))
    assert validator.is_valid(body)
    assert not validator.is_valid({name: value for name, value in body.items() if name != "due"})


def test_every_channel_names_a_schema_that_is_there() -> None:
    for channel in documents.asyncapi()["channels"].values():
        for message in channel["messages"].values():
            assert message["payload"]["$ref"] in documents.files()
