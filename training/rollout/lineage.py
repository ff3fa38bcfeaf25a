"""One release from another: its successor, the end of its canary, newer odds, the way back, and what a split cluster inherits. Pure."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from schemas.release import Ancestor, Release, Snapshot

BASE = "base"
KEPT = 5  # ancestors that a record carries


def successor(
    before: Release | None, cluster: str, artifact: str, sha256: str, base_sha256: str, rank: int, at: str, share: float = 1.0
) -> Release:
    """The next release of a cluster, serving ``share`` of its mails until it is promoted."""
    return Release(
        release_id=f"{cluster}-{sha256[:12]}",
        cluster=cluster,
        epoch=before.epoch + 1 if before else 1,
        artifact=artifact,
        sha256=sha256,
        base_sha256=base_sha256,
        rank=rank,
        at=at,
        parent=before.release_id if before else None,
        share=share,
        before=_line(before),
    )


def promoted(release: Release, at: str) -> Release:
    """A canary that did no harm serves everybody."""
    return msgspec.structs.replace(release, epoch=release.epoch + 1, share=1.0, at=at)


def leaning(release: Release, odds: Mapping[str, float], at: str) -> Release:
    """The same release with newer odds of its clauses. A canary's time runs on."""
    return msgspec.structs.replace(release, epoch=release.epoch + 1, odds=dict(odds), at=at if release.share >= 1.0 else release.at)


def reverted(release: Release, at: str, why: str) -> Release:
    """The release before this one serves again, under a new epoch (writers refuse to go back in epochs); before the first is the base."""
    old = next(iter(release.before), Ancestor(BASE, 0, "", "", release.base_sha256, release.rank))
    rest = release.before[1:]
    return Release(
        release_id=old.release_id,
        cluster=release.cluster,
        epoch=release.epoch + 1,
        artifact=old.artifact,
        sha256=old.sha256,
        base_sha256=old.base_sha256,
        rank=old.rank,
        at=at,
        parent=rest[0].release_id if rest else None,
        examples=release.examples,  # what taught a bad release teaches no other one at once
        rolled_back_from=release.release_id,
        why=why,
        before=rest,
    )


def inherited(snapshot: Snapshot, serving: Mapping[str, Release], at: str) -> list[Release]:
    """A first release for each cluster that split from one with a release: the parent's adapter, until it has learned its own."""
    found = []
    for cluster in snapshot.clusters:
        parent = serving.get(cluster.parent or "")
        if cluster.id not in serving and parent is not None and parent.artifact:
            whole = parent if parent.share >= 1.0 or not parent.before else None  # not a canary that may yet go back
            old = whole.ancestor() if whole else parent.before[0]
            if not old.artifact:
                continue
            found.append(
                Release(
                    release_id=old.release_id,
                    cluster=cluster.id,
                    epoch=1,
                    artifact=old.artifact,
                    sha256=old.sha256,
                    base_sha256=old.base_sha256,
                    rank=old.rank,
                    at=at,
                    inherited_from=parent.cluster,
                    odds=whole.odds if whole else {},
                )
            )
    return found


def _line(before: Release | None) -> tuple[Ancestor, ...]:
    """Newest first; a canary that never served everybody is no place to go back to."""
    if before is None:
        return ()
    return (before.ancestor(), *before.before)[:KEPT] if before.share >= 1.0 else before.before[:KEPT]
