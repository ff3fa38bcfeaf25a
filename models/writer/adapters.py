"""Cluster adapters: LoRA in PEFT's own safetensors format, verified, then laid out as the graph wants them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from models.learning.clause_odds import checked
from models.writer.base import Shape, Weights, parse_safetensors
from models.writer.graph import GROUPS, wide
from schemas.errors import ArtifactError

_PREFIX = "base_model.model.model.layers."


@dataclass(frozen=True, slots=True, eq=False)
class Adapter:
    """``a[i]`` f32[in,r'], ``b[i]`` f32[r',out] for site i = 4 * layer + group; alpha/rank is folded into ``b``.

    ``odds``: nats by clause id that feedback speaks for or against (``models.learning.clause_odds``); they travel in the file's metadata.
    """

    sha256: str
    rank: int
    a: tuple[NDArray[np.float32], ...]
    b: tuple[NDArray[np.float32], ...]
    odds: Mapping[str, float] = field(default_factory=dict)


def read(file: Path, shape: Shape, base_sha256: str, rank: int, sha256: str = "") -> Adapter:
    """Read and verify a file. ``rank``: the graph's; a smaller one is padded. Raises ArtifactError: refused, never half used."""
    try:
        data = file.read_bytes()
    except OSError as error:
        raise ArtifactError(f"{file}: can't be read ({error.strerror}): publish it again") from error
    found = hashlib.sha256(data).hexdigest()
    if sha256 and found != sha256:
        raise ArtifactError(f"{file}: its sha256 is {found[:12]}…, not the release's {sha256[:12]}…: publish it again")
    return parse(data, found, file, shape, base_sha256, rank)


def parse(data: bytes, sha256: str, file: Path, shape: Shape, base_sha256: str, rank: int) -> Adapter:
    """As ``read``, of what was read from ``file`` and whose sha256 is known."""
    try:
        tensors, meta = parse_safetensors(data, file)
        theirs, alpha = int(meta["rank"]), float(meta["alpha"])
        odds = checked(json.loads(meta.get("odds", "{}")))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ArtifactError(f"{file}: not a whole LoRA file ({error}): publish it again") from error
    if meta.get("base_sha256") != base_sha256:
        raise ArtifactError(
            f"{file}: trained on base {meta.get('base_sha256', '')[:12]}…, this writer has {base_sha256[:12]}…: train it anew"
        )
    if not 0 < theirs <= rank:
        raise ArtifactError(f"{file}: rank {theirs}, the writer's graph has room for {rank}: set training.rank to {theirs} for both")
    _check(file, tensors, shape, theirs)
    return replace(_fuse(sha256, tensors, shape, theirs, alpha / theirs, rank), odds=odds)


def _check(file: Path, tensors: Weights, shape: Shape, rank: int) -> None:
    expected: dict[str, tuple[int, int]] = {}
    for layer in range(shape.layers):
        for group, members in GROUPS:
            into, outs = wide(shape, group)
            for member, out in zip(members, outs, strict=True):
                expected[f"{_PREFIX}{layer}.{member}.lora_A.weight"] = (rank, into)
                expected[f"{_PREFIX}{layer}.{member}.lora_B.weight"] = (out, rank)
    strange = next(iter(sorted(set(tensors) ^ set(expected))), None)
    if strange:
        raise ArtifactError(f"{file}: {strange} is {'missing' if strange in expected else 'unknown'}: train all seven linears, no more")
    for name, size in expected.items():
        if tensors[name].shape != size:
            raise ArtifactError(f"{file}: {name} is {tensors[name].shape}, the base wants {size}: train it anew on this base")
        if not np.isfinite(tensors[name]).all():
            raise ArtifactError(f"{file}: {name} holds values that aren't finite: train it anew with a lower rate")


def _fuse(sha256: str, tensors: Weights, shape: Shape, theirs: int, scale: float, rank: int) -> Adapter:
    """Members of a group side by side in A, block-diagonal in B."""
    downs: list[NDArray[np.float32]] = []
    ups: list[NDArray[np.float32]] = []
    for layer in range(shape.layers):
        for group, members in GROUPS:
            into, outs = wide(shape, group)
            a = np.zeros((into, rank * len(members)), np.float32)
            b = np.zeros((rank * len(members), sum(outs)), np.float32)
            column = 0
            for i, (member, out) in enumerate(zip(members, outs, strict=True)):
                a[:, i * rank : i * rank + theirs] = tensors[f"{_PREFIX}{layer}.{member}.lora_A.weight"].T
                b[i * rank : i * rank + theirs, column : column + out] = scale * tensors[f"{_PREFIX}{layer}.{member}.lora_B.weight"].T
                column += out
            downs.append(a)
            ups.append(b)
    return Adapter(sha256, rank, tuple(downs), tuple(ups))
