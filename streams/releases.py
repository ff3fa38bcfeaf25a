"""Which adapter serves which cluster: ``model.releases`` followed, artifacts fetched and verified, references swapped.

A mail that is being written keeps the adapter it began with; the next one of
its cluster gets the new one. A record of an older epoch, another base or a torn
file changes nothing: what served goes on.
"""

from __future__ import annotations

import hashlib
import logging
import os
from pathlib import Path

import fsspec
import msgspec

from models.writer import adapters
from models.writer.adapters import Adapter
from models.writer.base import Shape
from schemas.config import Settings
from schemas.errors import ArtifactError
from schemas.release import Release

log = logging.getLogger("mailtide.writer")
BASE = "base"


class Releases:
    """The serving releases. ``apply`` may run in a worker thread: it swaps whole references."""

    def __init__(self, settings: Settings, shape: Shape, base_sha256: str, rank: int) -> None:
        self._folder = Path(settings.home).resolve() / "adapters"
        self._shape, self._base, self._rank = shape, base_sha256, rank
        self._serving: dict[str, tuple[Release, Adapter | None]] = {}
        self._before: dict[str, tuple[str, Adapter | None]] = {}  # what the canary's other share gets
        self._newest: dict[str, int] = {}
        self.refused = 0

    def choose(self, cluster: str, intent_id: str) -> tuple[str, Adapter | None]:
        """Release id and adapter for one intent; the same intent always falls on the same side of a canary."""
        found = self._serving.get(cluster)
        if found is None:
            return BASE, None
        release, adapter = found
        draw = int.from_bytes(hashlib.blake2b((release.release_id + intent_id).encode(), digest_size=8).digest(), "big") / 2**64
        return (release.release_id, adapter) if draw < release.share else self._before.get(cluster, (BASE, None))

    def serving(self) -> set[str]:
        """Ids of all releases that an intent may get."""
        return {BASE} | {release.release_id for release, _ in self._serving.values()} | {name for name, _ in self._before.values()}

    def apply(self, record: bytes) -> bool:
        """Take one record of the topic; True where it serves from now on. Refusals are logged, never raised."""
        try:
            release = msgspec.json.decode(record, type=Release)
        except msgspec.MsgspecError as error:
            self.refused += 1
            log.warning("release refused: not a release record (%s)", error)
            return False
        if release.epoch <= self._newest.get(release.cluster, -1):
            log.info("release %s of cluster %s is older than what serves", release.release_id, release.cluster)
            return False
        try:
            adapter = self._load(release)
        except ArtifactError as error:
            self.refused += 1
            log.warning("release %s of cluster %s refused: %s", release.release_id, release.cluster, error)
            return False
        self._newest[release.cluster] = release.epoch
        known = self._serving.get(release.cluster)
        if release.share < 1.0:
            self._before[release.cluster] = (known[0].release_id, known[1]) if known else self._parent(release)
        else:
            self._before.pop(release.cluster, None)
        self._serving[release.cluster] = (release, adapter)
        log.info("release %s serves cluster %s", release.release_id, release.cluster)
        return True

    def _load(self, release: Release) -> Adapter | None:
        if not release.artifact:  # back to the base alone
            return None
        if release.base_sha256 != self._base:
            raise ArtifactError(f"trained on base {release.base_sha256[:12]}…, this writer has {self._base[:12]}…: train it anew")
        file = self._fetch(release)
        adapter = adapters.read(file, self._shape, self._base, self._rank, release.sha256)
        file.with_name(f"{hashlib.sha256(release.release_id.encode()).hexdigest()[:32]}.json").write_bytes(msgspec.json.encode(release))
        return adapter

    def _fetch(self, release: Release) -> Path:
        """The artifact as a local file, named by its sha256; kept, so that a restart needs no store."""
        digest = release.sha256
        if len(digest) != 64 or not set(digest) <= set("0123456789abcdef"):  # it becomes a file's name
            raise ArtifactError(f"{release.artifact}: {digest[:70]!r} is no sha256: publish it again")
        file = self._folder / f"{digest}.safetensors"
        if file.is_file() and hashlib.sha256(file.read_bytes()).hexdigest() == digest:
            return file
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            with fsspec.open(release.artifact, "rb") as source:
                data: bytes = source.read()
        except Exception as error:  # each of fsspec's stores has its own errors
            raise ArtifactError(f"{release.artifact}: can't be read ({error}): see training.artifacts") from error
        if hashlib.sha256(data).hexdigest() != digest:
            raise ArtifactError(f"{release.artifact}: its sha256 isn't the release's: torn or replaced; publish it again")
        beside = file.with_suffix(f".{os.getpid()}.part")
        beside.write_bytes(data)
        beside.replace(file)
        return file

    def _parent(self, release: Release) -> tuple[str, Adapter | None]:
        """After a restart the compacted topic holds the canary alone; its parent is where we left it."""
        if release.parent:
            note = self._folder / f"{hashlib.sha256(release.parent.encode()).hexdigest()[:32]}.json"
            try:
                parent = msgspec.json.decode(note.read_bytes(), type=Release)
                return parent.release_id, self._load(parent)
            except (OSError, msgspec.MsgspecError, ArtifactError) as error:
                log.warning("parent %s of release %s isn't here (%s): the base serves its share", release.parent, release.release_id, error)
        return BASE, None
