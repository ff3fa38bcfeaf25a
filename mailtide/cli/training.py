"""``mailtide train`` and ``mailtide release``: the training service and what it published, from the command line."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import msgspec
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from mailtide.local import broker
from mailtide.process import shutdown
from mailtide.services import health
from mailtide.services.up import signals
from schemas.config import Settings
from schemas.errors import MailtideError
from schemas.mail import iso
from schemas.release import Release

DEMO_FITS = 1  # clusters that the demo refits while its mail flows
DEMO_POLITENESS = 3  # nice; any more, and the release comes when all mail is out
DEMO = {
    "min_examples": 32,
    "interval": 30.0,
    "steps": 6,
    "batch": 4,
    "kl": 0.0,
    "epsilon": 0.0,
}  # enough to see a gain, little enough for two cores that also write mail


def train(settings: Settings, once: bool, cluster: str | None, demo: bool, console: Console) -> list[dict[str, Any]]:
    """Run the service, or one round of it; what the gate said of each fit of that round.

    Raises MailtideError where ``cluster`` has no examples.
    """
    from training.service import Trainer

    if demo:
        settings = msgspec.structs.replace(settings, training=msgspec.structs.replace(settings.training, **DEMO))
    with broker.running(settings) as ready, signals() as halt, _bars(console) as step:
        trainer = Trainer(ready, halt, step)
        try:
            if not once:
                # A fit can't be left in the middle of a step, which may outlast a supervisor's patience.
                with (
                    shutdown.deadline(halt, "trainer"),
                    health.serving(ready, "trainer", lambda: {"process": True}, lambda: {"train": trainer.ready}),
                ):
                    trainer.run(most=DEMO_FITS, politeness=DEMO_POLITENESS) if demo else trainer.run()
                return []
            judged = trainer.once(cluster)
            if cluster is not None and not judged:
                raise MailtideError(f"cluster {cluster!r} has too few examples to learn from; known: {sorted(trainer.examples())}")
            return [{"metrics": one.metrics, "failed": one.failed, "published": one.passed} for one in judged]
        finally:
            trainer.close()


@contextmanager
def _bars(console: Console) -> Iterator[Callable[[str, int, int, float], None]]:
    """A progress bar for each cluster that is being fitted; none where nobody looks."""
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        tasks: dict[str, TaskID] = {}

        def step(name: str, number: int, of: int, loss: float) -> None:
            if name not in tasks or number == 1:
                tasks[name] = progress.add_task(name, total=of)
            progress.update(tasks[name], completed=number, total=of, description=f"{name}  loss {loss:.3f}")

        yield step


def search(settings: Settings, cluster: str | None, trials: int, steps: int, console: Console) -> str:
    """Try settings of the fit on one cluster's examples; the best as TOML for ``mailtide.toml``.

    Raises MailtideError where there is nothing to try them on.
    """
    with broker.reading(settings) as ready, _bars(console) as step:
        from training.refit.search import best_settings  # half a minute of torch, which a folder without data needn't wait for

        return best_settings(ready, cluster, trials, steps, step)


def listing(settings: Settings) -> list[dict[str, Any]]:
    """The release that serves each cluster."""
    from training.rollout.releases import serving

    with broker.reading(settings) as ready:
        return [_told(release) for _, release in sorted(serving(ready).items())]


def show(settings: Settings, cluster: str) -> list[dict[str, Any]]:
    """Every release of one cluster that is still on the topic, oldest first."""
    from training.rollout.releases import history

    with broker.reading(settings) as ready:
        found = history(ready).get(cluster)
    if not found:
        raise MailtideError(f"no release of cluster {cluster!r}; see `mailtide release list`")
    return [_told(release) for release in found]


def rollback(settings: Settings, cluster: str) -> dict[str, Any]:
    """Serve the release before the present one again; before a cluster's first release is the base alone."""
    from training.rollout.lineage import reverted
    from training.rollout.releases import publish, serving

    with broker.reading(settings) as ready:
        bad = serving(ready).get(cluster)
        if bad is None:
            raise MailtideError(f"no release of cluster {cluster!r}; see `mailtide release list`")
        if not bad.artifact:
            raise MailtideError(f"cluster {cluster!r} is back at the base already; there is nothing before it")
        again = reverted(bad, iso(time.time()), "asked for on the command line")
        publish(ready, again)
    return _told(again)


def _told(release: Release) -> dict[str, Any]:
    """As on the topic; of the odds, which a thousand clauses may have, their number alone."""
    return msgspec.to_builtins(release) | {"odds": len(release.odds)}
