"""Which adapter serves which cluster: ``model.releases`` followed, artifacts fetched and verified, references swapped.

A mail that is being written keeps the adapter it began with; the next one of
its cluster gets the new one. A record of an older epoch, another base or a torn
file changes nothing: what served goes on. A record may bring newer odds of
clauses for the adapter that serves: then no file is read.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
from dataclasses import dataclass, replace
from pathlib import Path

import fsspec
import msgspec

from models.learning.clause_odds import checked
from models.writer import adapters
from models.writer.adapters import Adapter
from models.writer.base import Shape
from schemas.config import Settings
from schemas.errors import UNREADABLE, ArtifactError
from schemas.release import Ancestor, Release

log = logging.getLogger("mailtide.writer")
BASE = "base"


@dataclass(frozen=True, slots=True)
class Serving:
    """What one cluster's mails get: one reference, so that a reader in another thread never sees half a change."""

    release: Release
    adapter: Adapter | None
    before: tuple[str, Adapter | None] = (BASE, None)  # what the canary's other share gets


class Releases:
    """The serving releases. ``apply`` loads and verifies (seconds from a far store): call it in a worker thread, one at a time."""

    def __init__(self, settings: Settings, shape: Shape, base_sha256: str, rank: int) -> None:
        self._folder = Path(settings.home).resolve() / "adapters"
        self._shape, self._base, self._rank = shape, base_sha256, rank
        self._serving: dict[str, Serving] = {}
        self._fetched: dict[Path, bytes] = {}  # verified, not kept yet: mail need not wait for the disk
        self.refused = 0

    def choose(self, cluster: str, intent_id: str) -> tuple[str, Adapter | None]:
        """Release id and adapter for one intent; the same intent always falls on the same side of a canary."""
        found = self._serving.get(cluster)
        if found is None:
            return BASE, None
        name = found.release.release_id
        draw = int.from_bytes(hashlib.blake2b((name + intent_id).encode(), digest_size=8).digest(), "big") / 2**64
        return (name, found.adapter) if draw < found.release.share else found.before

    def serving(self) -> dict[str, Adapter | None]:
        """All releases that an intent may get, by id."""
        found: dict[str, Adapter | None] = {BASE: None}
        for one in list(self._serving.values()):
            found |= {one.before[0]: one.before[1], one.release.release_id: one.adapter}
        return found

    def apply(self, record: bytes) -> bool:
        """Take one record of the topic; True where it serves from now on. Refusals are logged.

        Raises one of UNREADABLE for what is no release record: ``transport.follow`` knows its place and says it.
        """
        try:
            release = msgspec.json.decode(record, type=Release)
        except UNREADABLE:
            self.refused += 1
            raise
        known = self._serving.get(release.cluster)
        if known is not None and release.epoch <= known.release.epoch:
            self.refused += 1
            log.warning(
                "release %s of cluster %s refused: its epoch %d is not newer than %d, which serves",
                *(release.release_id, release.cluster, release.epoch, known.release.epoch),
            )
            return False
        try:
            adapter = self._adapter(release, known)
        except ArtifactError as error:
            self.refused += 1
            log.warning("release %s of cluster %s refused: %s", release.release_id, release.cluster, error)
            return known is None and self._fall_back(release)
        self._serving[release.cluster] = Serving(release, adapter, self._before(release, known) if release.share < 1.0 else (BASE, None))
        log.info("release %s serves cluster %s", release.release_id, release.cluster)
        self._keep()
        return True

    def _adapter(self, release: Release, known: Serving | None) -> Adapter | None:
        """The record's artifact, which may be the one that serves, leaning as the record says."""
        adapter = known.adapter if known and _same_odds_apart(release, known.release) else self._load(release.ancestor())
        if adapter is None or not release.odds:
            return adapter
        try:
            return replace(adapter, odds=checked(release.odds))
        except ValueError as error:
            raise ArtifactError(f"{error}: train it again") from error

    def _fall_back(self, refused: Release) -> bool:
        """After a restart compaction has left the bad record alone: the newest whole ancestor serves on, or itself without its bad odds."""
        own = (refused.ancestor(),) if refused.odds and refused.share >= 1.0 else ()
        for old in (*own, *refused.before):
            try:
                adapter = self._load(old)
            except ArtifactError:
                continue
            whole = Release(old.release_id, refused.cluster, old.epoch, old.artifact, old.sha256, old.base_sha256, old.rank, refused.at)
            self._serving[refused.cluster] = Serving(whole, adapter)
            log.warning("release %s serves cluster %s on", old.release_id, refused.cluster)
            self._keep()
            return True
        return False

    def _before(self, release: Release, known: Serving | None) -> tuple[str, Adapter | None]:
        """What serves beside a canary: its parent, in hand or (after a restart) fetched again, else the base alone."""
        if known is not None and known.release.release_id == release.parent:
            return known.release.release_id, known.adapter
        if known is not None and known.release.release_id == release.release_id and known.release.share < 1.0:  # newer odds alone
            return known.before
        parent = next(iter(release.before), None)
        if parent is None:
            return BASE, None
        try:
            return parent.release_id, self._load(parent)
        except ArtifactError as error:
            log.warning(
                "parent %s of release %s can't be had (%s): the base serves its share", parent.release_id, release.release_id, error
            )
            return BASE, None

    def _load(self, release: Ancestor) -> Adapter | None:
        if not release.artifact:  # the base alone
            return None
        if release.base_sha256 != self._base:
            raise ArtifactError(f"trained on base {release.base_sha256[:12]}…, this writer has {self._base[:12]}…: train it anew")
        file, data, kept = self._fetch(release)
        adapter = adapters.parse(data, release.sha256, file, self._shape, self._base, self._rank)
        if not kept:
            self._fetched[file] = data
        return adapter

    def _fetch(self, release: Ancestor) -> tuple[Path, bytes, bool]:
        """The artifact, its sha256 found right; the local file named by it, which spares a restart the store; whether that is there."""
        digest = release.sha256
        if len(digest) != 64 or not set(digest) <= set("0123456789abcdef"):  # it becomes a file's name
            raise ArtifactError(f"{release.artifact}: {digest[:70]!r} is no sha256: publish it again")
        file = self._folder / f"{digest}.safetensors"
        with contextlib.suppress(OSError):
            data = file.read_bytes()
            if hashlib.sha256(data).hexdigest() == digest:
                return file, data, True
        try:
            with fsspec.open(release.artifact, "rb") as source:
                data = source.read()
        except Exception as error:  # each of fsspec's stores has its own errors
            raise ArtifactError(f"{release.artifact}: can't be read ({error}): see training.artifacts") from error
        if hashlib.sha256(data).hexdigest() != digest:
            raise ArtifactError(f"{release.artifact}: its sha256 isn't the release's: torn or replaced; publish it again")
        return file, data, False

    def _keep(self) -> None:
        """What was fetched, as local files; where there is no room a restart fetches it again."""
        while self._fetched:
            file, data = self._fetched.popitem()
            beside = file.with_suffix(f".{os.getpid()}.part")
            try:
                self._folder.mkdir(parents=True, exist_ok=True)
                beside.write_bytes(data)
                beside.replace(file)
            except OSError as error:
                with contextlib.suppress(OSError):  # the folder itself may be what can't be made
                    beside.unlink(missing_ok=True)
                log.warning("%s: can't be kept (%s), it is fetched again at the next start: make room", file, error.strerror)


def _same_odds_apart(release: Release, serving: Release) -> bool:
    """Whether the adapter in hand will do; one that leans by a record's odds has forgotten its file's own."""
    return (release.sha256, release.base_sha256) == (serving.sha256, serving.base_sha256) and bool(release.odds or not serving.odds)
