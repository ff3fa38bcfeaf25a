"""Sent mails and what followed them, from Kafka into Parquet files that a kill can't tear.

Each poll becomes one file named by topic, partition and the offsets in it;
where to read on is the largest offset among the names. Rows and offsets are
one thing, so they can't disagree. Many small files are laid together now and
then; a kill in between leaves rows twice, which are read once.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

from schemas.config import Settings
from schemas.mail import seconds
from schemas.topics import EXAMPLES, FEEDBACK
from training.feedback.reward import OBJECTIONS, reward, weights
from transport.tail import Tail

MANY = 64  # files of one partition that are laid together
EARLY = 300.0  # seconds that a reader's clock may be behind ours
NAME = re.compile(r"(?P<topic>.+)-(?P<partition>\d+)-(?P<first>\d+)-(?P<last>\d+)\.parquet")


@dataclass(frozen=True, slots=True)
class ExampleRow:
    """One mail to learn from. ``weight`` has mean 1 within a cluster."""

    intent_id: str
    cluster: str
    trigger: str
    tone: str
    prompt: str
    text: str
    weight: float
    reward: float
    sent: float
    clauses: str = ""  # ids, in the order said


def follow(settings: Settings, folder: Path) -> int:
    """Take in what is new on both topics; how many records that was."""
    folder.mkdir(parents=True, exist_ok=True)
    tail, taken = Tail(settings, {EXAMPLES: None, FEEDBACK: None}, read_to(folder)), 0
    try:
        for place, batch in tail.batches():
            rows = [_flat(found) for found in tail.read(place, batch)]
            _keep(folder / f"{place.topic}-{place.partition}-{batch[0].offset}-{batch[-1].offset}.parquet", rows)
            taken += len(batch)
    finally:
        tail.close()
    if taken:
        _lay_together(folder)
    return taken


def read_to(folder: Path) -> dict[tuple[str, int], int]:
    """Next offset to read, by topic (as the cluster knows it) and partition."""
    found: dict[tuple[str, int], int] = {}
    for file in folder.glob("*.parquet"):
        matched = NAME.fullmatch(file.name)
        if matched:
            key = (matched["topic"], int(matched["partition"]))
            found[key] = max(found.get(key, 0), int(matched["last"]) + 1)
    return found


def _keep(target: Path, rows: list[dict[str, Any]]) -> None:
    """Whole or not at all."""
    fresh = target.with_suffix(f".{os.getpid()}.new")  # several trainers may share a home
    pq.write_table(pa.Table.from_pylist(rows or [{"intent_id": ""}]), fresh)
    fresh.replace(target)


def _lay_together(folder: Path, many: int = MANY) -> None:
    """One file in place of ``many`` or more of a partition: the new one stands before the old ones go."""
    files: dict[tuple[str, str], list[tuple[int, int, Path]]] = {}
    for file in folder.glob("*.parquet"):
        if matched := NAME.fullmatch(file.name):
            files.setdefault((matched["topic"], matched["partition"]), []).append((int(matched["first"]), int(matched["last"]), file))
    for (topic, partition), found in files.items():
        if len(found) >= many:
            found.sort()
            rows = [row for _, _, file in found for row in pq.read_table(file).to_pylist()]
            target = folder / f"{topic}-{partition}-{found[0][0]}-{max(last for _, last, _ in found)}.parquet"
            _keep(target, rows)
            for _, _, file in found:
                if file != target:
                    file.unlink(missing_ok=True)


def _flat(value: msgspec.Struct) -> dict[str, Any]:
    row: dict[str, Any] = msgspec.to_builtins(value)
    choices = row.pop("choices", None)
    if choices is not None:
        row["propensity"] = propensity(choice["propensity"] for choice in choices)
        row["clauses"] = " ".join(choice["clause"] for choice in choices)
    return row


def propensity(each: Iterable[float]) -> float:
    """Geometric mean of the clauses' propensities; 1 where nothing was chosen."""
    logs = [math.log(max(p, 1e-6)) for p in each]
    return math.exp(sum(logs) / len(logs)) if logs else 1.0


def rows(settings: Settings, folder: Path, objects: Callable[[str], bool] = lambda _customer: False) -> dict[str, list[ExampleRow]]:
    """Everything to learn from, by cluster, oldest first; customers who objected, were erased or whom ``objects`` names are left out."""
    prefix = settings.kafka.prefix
    sent: dict[str, dict[str, Any]] = {}
    followed: dict[str, list[dict[str, Any]]] = {}
    objectors: set[str] = set()
    for file in sorted(folder.glob("*.parquet")):
        matched = NAME.fullmatch(file.name)
        if matched is None:
            continue
        for row in pq.read_table(file).to_pylist():
            if matched["topic"] == prefix + EXAMPLES:
                if row["intent_id"]:
                    sent[row["intent_id"]] = row
            elif row.get("customer"):
                followed.setdefault(row["intent_id"], []).append(row)
                if row["kind"] in OBJECTIONS:
                    objectors.add(row["customer"])
    window = settings.training.attribution
    by_cluster: dict[str, list[tuple[dict[str, Any], float]]] = {}
    for intent, row in sent.items():
        if row["customer"] in objectors or objects(row["customer"]):
            continue
        at = seconds(row["sent"])
        kinds = [one["kind"] for one in followed.get(intent, ()) if -EARLY <= seconds(one["at"]) - at <= window]
        by_cluster.setdefault(row["cluster"], []).append((row, reward(kinds)))
    return {cluster: _rows(pairs) for cluster, pairs in by_cluster.items()}


def _rows(pairs: list[tuple[dict[str, Any], float]]) -> list[ExampleRow]:
    pairs.sort(key=lambda pair: (pair[0]["sent"], pair[0]["intent_id"]))
    each = weights([worth for _, worth in pairs], [row.get("propensity") or 1.0 for row, _ in pairs])
    return [
        ExampleRow(
            row["intent_id"],
            row["cluster"],
            row["trigger"],
            row["tone"],
            row["prompt"],
            row["text"],
            weight,
            worth,
            seconds(row["sent"]),
            row.get("clauses") or "",
        )
        for (row, worth), weight in zip(pairs, each, strict=True)
    ]
