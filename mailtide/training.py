"""``mailtide train`` and ``mailtide release``: the training service and what it published, from the command line."""

from __future__ import annotations

import signal
import time
from typing import Any

import msgspec

from mailtide import broker
from mailtide.up import signals
from schemas.config import Settings
from schemas.errors import MailtideError
from schemas.mail import iso

DEMO_FITS = 1  # clusters that the demo refits while its mail flows
DEMO = {
    "min_examples": 32,
    "interval": 30.0,
    "steps": 8,
    "batch": 4,
    "kl": 0.0,
    "epsilon": 0.0,
}  # enough to see a gain, little enough for two cores that also write mail


def train(settings: Settings, once: bool, cluster: str | None, demo: bool) -> list[dict[str, Any]]:
    """Run the service, or one round of it; what the gate said of each fit of that round.

    Raises MailtideError where ``cluster`` has no examples.
    """
    from training.service import Trainer

    if demo:
        settings = msgspec.structs.replace(settings, training=msgspec.structs.replace(settings.training, **DEMO))
    with broker.running(settings) as ready, signals() as halt:
        trainer = Trainer(ready, halt)
        if once:
            judged = trainer.once(cluster)
            if cluster is not None and not judged:
                raise MailtideError(f"cluster {cluster!r} has too few examples to learn from; known: {sorted(trainer.examples())}")
            return [{"metrics": one.metrics, "failed": one.failed, "published": one.passed} for one in judged]
        trainer.run(most=DEMO_FITS if demo else None)
        while demo and not halt.is_set():  # a supervisor would take an early end for a death
            signal.pause()
    return []


def listing(settings: Settings) -> list[dict[str, Any]]:
    """The release that serves each cluster."""
    from training.releases import serving

    with broker.running(settings) as ready:
        return [msgspec.to_builtins(release) for _, release in sorted(serving(ready).items())]


def show(settings: Settings, cluster: str) -> list[dict[str, Any]]:
    """Every release of one cluster that is still on the topic, oldest first."""
    from training.releases import history

    with broker.running(settings) as ready:
        found = history(ready).get(cluster)
    if not found:
        raise MailtideError(f"no release of cluster {cluster!r}; see `mailtide release list`")
    return [msgspec.to_builtins(release) for release in found]


def rollback(settings: Settings, cluster: str) -> dict[str, Any]:
    """Serve the parent's artifact again, under a new epoch (writers refuse to go back in epochs)."""
    from training.releases import history, publish

    with broker.running(settings) as ready:
        found = history(ready).get(cluster, [])
        if not found:
            raise MailtideError(f"no release of cluster {cluster!r}; see `mailtide release list`")
        bad = found[-1]
        parent = next((one for one in reversed(found) if one.release_id == bad.parent), None)
        if parent is None:
            raise MailtideError(f"{bad.release_id} has no parent on the topic to go back to")
        again = msgspec.structs.replace(
            parent, epoch=bad.epoch + 1, at=iso(time.time()), parent=parent.parent, rolled_back_from=bad.release_id, share=1.0
        )
        publish(ready, again)
    return dict(msgspec.to_builtins(again))
