"""What the stages of this process count, as Prometheus reads it, and whether each is ready. Every series is declared here.

A stage says how to ask it and is asked when somebody looks, from the thread of
whoever looks: what it answers with must be read in one go (``dict(counter)``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from prometheus_client import REGISTRY
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

Value = tuple[str, tuple[str, ...], float]  # series, values of its labels, figure
Metrics = Callable[[], Iterable[Value]]

# Counters end in _total, as Prometheus wants them; all else is a gauge.
DECLARED: dict[str, tuple[str, tuple[str, ...]]] = {
    "mailtide_stage_ready": ("1 once the group is joined and what the partitions need is recovered", ("stage",)),
    "mailtide_stage_partitions": ("partitions held", ("stage",)),
    "mailtide_fetch_paused": ("partitions that are not fetched because enough is in memory", ("stage",)),
    "mailtide_fetch_pauses_total": ("how often fetching of a partition paused", ("stage",)),
    "mailtide_events_total": ("records of customer.events: read, forwarded to their partition, or what else was counted", ("result",)),
    "mailtide_dead_letters_total": ("records that could not be read", ("reason",)),
    "mailtide_intents_total": ("triggers that fired", ("trigger",)),
    "mailtide_feedback_total": ("what followed a mail: opened, clicked, ordered, unsubscribed, complained, bounced", ("kind",)),
    "mailtide_writer_mails_total": ("drafts by where their words come from", ("origin",)),
    "mailtide_writer_shed_total": ("drafts that no model was asked for, because mail would have been late or in vain", ("to",)),
    "mailtide_writer_waiting": ("intents in the writer's queue", ()),
    "mailtide_writer_tokens_total": ("tokens of finished texts", ()),
    "mailtide_writer_busy_seconds_total": ("seconds in which the engine had work", ()),
    "mailtide_writer_guard_refused_total": ("drafts that the guard refused, by rule", ("rule",)),
    "mailtide_writer_releases_refused_total": ("releases that were refused", ()),
    "mailtide_sender_outcomes_total": ("intents that ended", ("trigger", "status", "reason")),
    "mailtide_sender_drafts": (
        "drafts held: ready, asleep (quiet hours, or put off by the server), behind intake, sending",
        ("state",),
    ),
}


@dataclass(eq=False)
class Stages(Collector):
    """The stages that serve in this process."""

    ready: dict[str, Callable[[], bool]] = field(default_factory=dict)
    metrics: dict[str, Metrics] = field(default_factory=dict)

    @contextmanager
    def watch(self, name: str, ready: Callable[[], bool], metrics: Metrics) -> Iterator[None]:
        """While the block runs, the stage is asked."""
        self.ready[name], self.metrics[name] = ready, metrics
        try:
            yield
        finally:
            del self.ready[name], self.metrics[name]

    def checks(self, wanted: Iterable[str]) -> dict[str, bool]:
        """Readiness of the stages that should serve here; one that hasn't begun isn't ready."""
        return {name: (check := self.ready.get(name)) is not None and check() for name in wanted}

    def collect(self) -> Iterable[GaugeMetricFamily | CounterMetricFamily]:
        """Every series that a stage has a figure for."""
        families: dict[str, GaugeMetricFamily | CounterMetricFamily] = {}
        for stage, metrics in list(self.metrics.items()):
            check = self.ready.get(stage)
            values = [*metrics(), ("mailtide_stage_ready", (stage,), float(check is not None and check()))]
            for name, labels, value in values:
                family = families.get(name)
                if family is None:
                    note, label_names = DECLARED[name]
                    kind = CounterMetricFamily if name.endswith("_total") else GaugeMetricFamily
                    family = families[name] = kind(name.removesuffix("_total"), note, labels=label_names)
                family.add_metric(labels, value)
        return families.values()


STAGES = Stages()
REGISTRY.register(STAGES)


def labelled(name: str, counts: Mapping[str, float]) -> list[Value]:
    """A series with one label, from a counter."""
    return [(name, (label,), value) for label, value in dict(counts).items()]


def writing(stats: Mapping[str, Any]) -> list[Value]:
    """The writer's counters (``WriterStage.stats``)."""
    origins = {name: stats[name] for name in ("generated", "pool", "template")}
    plain: list[Value] = [
        ("mailtide_writer_waiting", (), stats["waiting"]),
        ("mailtide_writer_tokens_total", (), stats["tokens"]),
        ("mailtide_writer_busy_seconds_total", (), stats["busy_seconds"]),
        ("mailtide_writer_releases_refused_total", (), stats["releases_refused"]),
    ]
    guard = labelled("mailtide_writer_guard_refused_total", stats["guard_refused"])
    return [*plain, *labelled("mailtide_writer_mails_total", origins), *labelled("mailtide_writer_shed_total", stats["shed"]), *guard]
