"""The training service: examples in, a refit for each cluster that is due, the gate, a release for what passes.

It also looks after what serves: canaries are promoted, harm is rolled back, clusters that split inherit,
and between refits the odds of clauses are counted anew.
"""

from __future__ import annotations

import gc
import os
import threading
import time
from collections.abc import Mapping
from pathlib import Path

import structlog

from schemas.config import Settings
from schemas.errors import ArtifactError
from schemas.mail import iso, seconds
from schemas.release import Release
from training.feedback.clause_odds import ClauseOddsTracker
from training.feedback.examples import ExampleRow, follow, read_to, rows
from training.feedback.tones import Tones
from training.membership import Membership
from training.refit.evaluate import Judge
from training.refit.gate import Judgement
from training.refit.plan import FEWEST
from training.refit.refit import Refit, RefitBench, Step, open_bench
from training.rollout import releases
from training.rollout.lineage import inherited, leaning, promoted, reverted
from training.rollout.watch import Watch

log = structlog.get_logger()
POLITENESS = 10  # nice: mail goes first
STORE_PATIENCE = 60.0  # seconds until a store that took no adapter is asked again
PROBED = 16  # newest mails of a cluster whose loss under the serving release is looked at
PROBES = 4  # looks in each interval


class Halted(Exception):
    """Asked to stop in the middle of a fit; the next start goes on from its checkpoint."""


class Lost(Exception):
    """The cluster went to another trainer in the middle of a fit."""


class Trainer:
    """One training process. ``halt`` is looked at between steps; ``step`` hears of each."""

    def __init__(self, settings: Settings, halt: threading.Event, step: Step = lambda *_: None) -> None:
        self.settings, self.halt, self.told = settings, halt, step
        self.folder = Path(settings.home).resolve() / "training"
        self.folder.mkdir(parents=True, exist_ok=True)
        cores = os.cpu_count() or 2
        self.threads = 2 if cores > 2 else 1  # the others write mail
        self.watch = Watch(settings)
        self.tones = Tones(settings)
        self.leanings = ClauseOddsTracker(settings.training.odds_examples)
        self.membership: Membership | None = None
        self._probed: dict[str, int] = {}
        self._examples: dict[str, list[ExampleRow]] | None = None

    # -- the service --------------------------------------------------------------------------------

    def run(self, poll: float = 2.0, most: int | None = None, politeness: int = POLITENESS) -> None:
        """Until ``halt``: refit each cluster of ours that is due. After ``most`` fits it only looks after what serves."""
        os.nice(politeness)
        self.membership = Membership(self.settings)
        interval = self.settings.training.interval
        last = probed = time.monotonic()
        fits = 0
        try:
            while not self.halt.is_set():
                found = self.look()
                if most is not None and fits >= most:
                    self.halt.wait(5 * poll)
                    continue
                if time.monotonic() - probed >= interval / PROBES:
                    self.probe(found)
                    probed = time.monotonic()
                scheduled = time.monotonic() - last >= interval
                due = self.due(found, scheduled)
                if due:
                    chosen = sorted(due, key=lambda cluster: -len(found[cluster]))[: None if most is None else most - fits]
                    fits += len(self.round({cluster: found[cluster] for cluster in chosen}, due))
                if scheduled or due:
                    last = time.monotonic()
                self.halt.wait(poll)
        finally:
            self.membership.close()
            self.membership = None

    def once(self, cluster: str | None = None) -> list[Judgement]:
        """Refit now, whatever is new: every cluster with examples, or the one named."""
        found = self.look()
        return self.round({name: each for name, each in found.items() if cluster is None or name == cluster})

    def close(self) -> None:
        """Let go of Kafka."""
        self.watch.close()

    # -- what is due ---------------------------------------------------------------------------------

    def look(self) -> dict[str, list[ExampleRow]]:
        """Take in what is new everywhere, look after what serves, and give the examples of our clusters."""
        folder = self.folder / "examples"
        if news := follow(self.settings, folder):
            self._examples = None
        self.watch.catch_up()
        if self.membership is not None:
            self.membership.beat()
            self.membership.read(read_to(folder))
        self.inherit()
        self.look_after()
        ours = {cluster: found for cluster, found in self.examples().items() if self.owns(cluster)}
        if news:
            self.tones.publish(ours)
        self.lean(ours)
        return ours

    @property
    def ready(self) -> bool:
        """A member of the group that has read what there is to learn from."""
        return self.membership is not None and self.membership.joined and self._examples is not None

    def owns(self, cluster: str) -> bool:
        """Whether the cluster is ours; all are, outside the service."""
        return self.membership is None or self.membership.owns(cluster)

    def examples(self) -> dict[str, list[ExampleRow]]:
        """All examples by cluster, oldest first; mails from before their customer had a cluster teach none."""
        if self._examples is None:
            self._examples = {cluster: found for cluster, found in rows(self.settings, self.folder / "examples").items() if cluster}
        return self._examples

    def due(self, found: Mapping[str, list[ExampleRow]], scheduled: bool) -> dict[str, str]:
        """Which clusters are to be refitted now, and why."""
        reasons: dict[str, str] = {}
        for cluster, each in found.items():
            new = len(each) - self._refit(cluster).progress(self.watch.serving.get(cluster))[0]
            if new >= self.settings.training.min_examples:
                reasons[cluster] = f"{new} new examples"
            elif new >= FEWEST and cluster in self.watch.drift.drifted:
                reasons[cluster] = f"drift: {self.watch.drift.drifted[cluster]}"
            elif new >= FEWEST and scheduled:
                reasons[cluster] = "schedule"
        return reasons

    def probe(self, found: Mapping[str, list[ExampleRow]]) -> None:
        """The serving releases' losses on mails that none was fitted on, for drift."""
        judge: Judge | None = None  # the writer's graph alone: torch is not needed to look
        for cluster, each in found.items():
            serving = self.watch.serving.get(cluster)
            refit = self._refit(cluster)
            fresh = each[max(self._probed.get(cluster, 0), refit.progress(serving)[0]) :][-PROBED:]
            if serving is None or not fresh or self.halt.is_set():
                continue
            judge = judge or Judge(self.settings, self.threads)
            for loss in judge.losses(refit.serving(serving), fresh, most=PROBED):
                self.watch.drift.loss(cluster, loss)
            self._probed[cluster] = len(each)

    # -- refits ---------------------------------------------------------------------------------------

    def round(self, due: Mapping[str, list[ExampleRow]], reasons: Mapping[str, str] | None = None) -> list[Judgement]:
        """Refit these clusters one after the other, the one with most examples first; the gate's judgement of each."""
        able = {cluster: found for cluster, found in due.items() if len(found) >= FEWEST}
        for cluster in due.keys() - able.keys():
            log.info("refit_waits", cluster=cluster, examples=len(due[cluster]), needs=FEWEST)
        if not able:
            return []
        judged = []
        base = open_bench(self.settings, self.folder, self.threads)
        for cluster, found in sorted(able.items(), key=lambda pair: -len(pair[1])):
            if self.halt.is_set():
                break
            log.info("refit_begins", cluster=cluster, examples=len(found), why=(reasons or {}).get(cluster, "asked for"))
            try:
                judged.append(self.refit(base, cluster, found))
            except Halted:
                log.info("refit_halted", cluster=cluster)
                break
            except Lost:
                log.info("refit_lost", cluster=cluster)
            except ArtifactError as error:  # the fit is kept, and only its end is done again
                log.error("refit_unpublished", cluster=cluster, error=str(error))
                self.halt.wait(STORE_PATIENCE)
        del base
        gc.collect()
        return judged

    def refit(self, base: RefitBench, cluster: str, found: list[ExampleRow]) -> Judgement:
        """Fit, judge and, where it passes and the cluster is still ours, publish one cluster's adapter."""
        before = self.watch.serving.get(cluster)
        refit = self._refit(cluster)

        def step(name: str, number: int, of: int, loss: float) -> None:
            self.told(name, number, of, loss)
            if self.halt.is_set():
                raise Halted
            self._still_ours(cluster)

        judged, release = refit.run(base, found, self._elders(cluster), before, step)
        if release is not None:
            self._still_ours(cluster)
            self.watch.catch_up()
            now = self.watch.serving.get(cluster)
            if (now.epoch if now else 0) >= release.epoch:  # rolled back, or published by another, meanwhile
                raise Lost
            self.publish(release)
        refit.done(len(found))
        self.watch.drift.learned(cluster)
        return judged

    def publish(self, release: Release) -> None:
        """Everywhere from here on."""
        releases.publish(self.settings, release)
        self.watch.released(release)
        log.info("published", cluster=release.cluster, release=release.release_id, epoch=release.epoch, share=release.share)

    def _still_ours(self, cluster: str) -> None:
        if self.membership is not None:
            self.membership.beat()
            if not self.membership.owns(cluster):
                raise Lost

    def _elders(self, cluster: str) -> list[ExampleRow]:
        """Examples of the cluster that this one split from: replayed until it has enough of its own."""
        known = self.watch.snapshot.clusters if self.watch.snapshot else ()
        parent = next((one.parent for one in known if one.id == cluster), None)
        return self.examples().get(parent, []) if parent else []

    def _refit(self, cluster: str) -> Refit:
        return Refit(self.settings, self.folder, cluster)

    # -- what serves -----------------------------------------------------------------------------------

    def inherit(self) -> None:
        """Clusters that split from one with a release begin with it."""
        if self.watch.snapshot is not None:
            for release in inherited(self.watch.snapshot, self.watch.serving, iso(time.time())):
                if self.owns(release.cluster):
                    self.publish(release)

    def lean(self, found: Mapping[str, list[ExampleRow]]) -> None:
        """Newer odds for each release whose cluster has enough new examples: no fit, and the same release."""
        for cluster, each in found.items():
            release = self.watch.serving.get(cluster)
            odds = self.leanings.news(release, each) if release is not None else {}
            if release is not None and odds:
                self.watch.catch_up()
                if self.watch.serving[cluster] is release:  # neither rolled back nor followed by another meanwhile
                    self.publish(leaning(release, odds, iso(time.time())))

    def look_after(self) -> None:
        """Back with a release that does harm; on with a canary that did none."""
        now = time.time()
        for cluster, release in list(self.watch.serving.items()):
            if not self.owns(cluster):
                continue
            verdict = self.watch.verdict(release)
            if verdict.action == "rollback":
                log.warning("rolled_back", cluster=cluster, release=release.release_id, why=verdict.why)
                self.publish(reverted(release, iso(now), verdict.why))
            elif release.share < 1.0 and (verdict.action == "promote" or now - seconds(release.at) > self.settings.training.canary_time):
                self.publish(promoted(release, iso(now)))
