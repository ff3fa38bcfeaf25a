"""The training service: examples in, a fit for each cluster that has enough, the gate, and a release for what passes."""

from __future__ import annotations

import gc
import json
import os
import random
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog
import torch
from safetensors.torch import save as save_tensors
from tokenizers import Tokenizer
from torch.utils.tensorboard import SummaryWriter

from models.writer import base as writer_base
from schemas.config import Settings
from schemas.errors import ArtifactError
from schemas.mail import iso
from schemas.release import Release
from training import artifacts, releases
from training.evaluate import SCORED, Judge
from training.examples import Row, follow, rows
from training.fit import Recipe, fit, load_base, split
from training.gate import Judgement, judge

log = structlog.get_logger()
POLITENESS = 10  # nice: mail goes first
FEWEST = 10  # examples below which no held-out loss means anything
HELD_OUT_MOST = 64  # the newest of them: losses of more cost minutes on a small machine and change no verdict
MOST = 2000  # newest examples of a cluster that a refit looks at


class Halted(Exception):
    """Asked to stop in the middle of a fit; what was learned so far is dropped and done again next time."""


@dataclass
class Bench:
    """The frozen base, loaded once for a round of fits."""

    model: Any
    tokenizer: Tokenizer
    eos: int
    sha256: str
    judge: Judge


class Trainer:
    """One training process. ``halt`` is looked at between steps."""

    def __init__(self, settings: Settings, halt: threading.Event) -> None:
        self.settings, self.halt = settings, halt
        self.folder = Path(settings.home).resolve() / "training"
        self.folder.mkdir(parents=True, exist_ok=True)
        self.threads = max(1, (os.cpu_count() or 2) // 2)  # the other half writes mail
        self.learned: dict[str, int] = self._read_progress()

    def run(self, poll: float = 2.0, most: int | None = None) -> None:
        """Until ``halt``: refit each cluster that has ``min_examples`` new ones, or any new one after ``interval`` seconds.

        ``most`` ends it after so many fits.
        """
        os.nice(POLITENESS)
        last, fits = time.monotonic(), 0
        while not self.halt.is_set() and (most is None or fits < most):
            follow(self.settings, self.folder / "examples")
            scheduled = time.monotonic() - last >= self.settings.training.interval
            least = 1 if scheduled else self.settings.training.min_examples
            due = {cluster: found for cluster, found in self.examples().items() if len(found) - self.learned.get(cluster, 0) >= least}
            if due:
                chosen = sorted(due, key=lambda cluster: -len(due[cluster]))[: None if most is None else most - fits]
                fits += len(self.round({cluster: due[cluster] for cluster in chosen}))
            if scheduled or due:
                last = time.monotonic()
            self.halt.wait(poll)

    def once(self, cluster: str | None = None) -> list[Judgement]:
        """Refit now, whatever is new: every cluster with examples, or the one named."""
        follow(self.settings, self.folder / "examples")
        found = self.examples()
        return self.round({name: each for name, each in found.items() if cluster is None or name == cluster})

    def examples(self) -> dict[str, list[Row]]:
        """All examples by cluster, oldest first; mails from before their customer had a cluster teach none."""
        return {cluster: found for cluster, found in rows(self.settings, self.folder / "examples").items() if cluster}

    def round(self, due: dict[str, list[Row]]) -> list[Judgement]:
        """Refit these clusters one after the other; the gate's judgement of each."""
        base = self._bench()
        judged = []
        try:
            for cluster, found in sorted(due.items(), key=lambda pair: -len(pair[1])):
                if self.halt.is_set():
                    break
                if len(found) < FEWEST:
                    log.info("refit_waits", cluster=cluster, examples=len(found), needs=FEWEST)
                    continue
                judged.append(self.refit(base, cluster, found))
                self.learned[cluster] = len(found)
                self._write_progress()
        except Halted:
            log.info("refit_halted")
        del base
        gc.collect()
        return judged

    def refit(self, base: Bench, cluster: str, found: list[Row]) -> Judgement:
        """Fit, judge and, where it passes, publish one cluster's adapter."""
        training = self.settings.training
        before = releases.serving(self.settings).get(cluster)
        serving = self._serving(before)
        recent = found[-MOST:]
        learn, held_out = split(recent)
        held_out = held_out[-HELD_OUT_MOST:]
        replayed = self._replay(cluster, found)
        recipe = Recipe(
            rank=training.rank,
            learning_rate=training.learning_rate,
            steps=training.steps,
            batch=training.batch,
            kl=training.kl,
            epsilon=training.epsilon,
            seed=len(found),
            threads=self.threads,
        )
        board = SummaryWriter(str(self.folder / "tensorboard" / cluster))
        started = time.monotonic()

        def step(number: int, loss: float) -> None:
            board.add_scalar("loss/train", loss, number)
            if self.halt.is_set():
                raise Halted

        try:
            fitted = fit(base.model, base.tokenizer, base.eos, [*learn, *replayed], held_out, recipe, serving, step)
        finally:
            board.close()
        metadata = {"base_sha256": base.sha256, "rank": str(recipe.rank), "alpha": str(2 * recipe.rank), "cluster": cluster}
        data = save_tensors({name: tensor.contiguous() for name, tensor in fitted.tensors.items()}, metadata)
        guard_pass, distinct = base.judge.sample(data, held_out)
        serving_guard = before.metrics.get("guard_pass", 1.0) if before else 1.0  # approved clauses pass by their making
        in_graph, in_torch = base.judge.losses(data, held_out), fitted.after[:SCORED]
        judged = judge(
            held_out=(fitted.before, fitted.after),
            replayed=None,
            guard_pass=guard_pass,
            serving_guard_pass=serving_guard,
            distinct=distinct,
            parity=sum(in_graph) / len(in_graph) - sum(in_torch) / len(in_torch),
            finite=all(bool(torch.isfinite(tensor).all()) for tensor in fitted.tensors.values()),
        )
        seconds = time.monotonic() - started
        log.info("refit", cluster=cluster, examples=len(found), steps=fitted.steps, seconds=round(seconds, 1), failed=judged.failed)
        self._record(cluster, judged, len(found), fitted.steps, seconds)
        if judged.passed:
            self._publish(cluster, data, base.sha256, before, judged, len(found))
        return judged

    def _publish(self, cluster: str, data: bytes, base_sha256: str, before: Release | None, judged: Judgement, examples: int) -> None:
        url, digest = artifacts.put(self.settings, data)
        release = Release(
            release_id=f"{cluster}-{digest[:12]}",
            cluster=cluster,
            epoch=(before.epoch if before else 0) + 1,
            artifact=url,
            sha256=digest,
            base_sha256=base_sha256,
            rank=self.settings.training.rank,
            at=iso(time.time()),
            parent=before.release_id if before else None,
            metrics={name: round(value, 5) for name, value in judged.metrics.items()},
            examples=examples,
            share=self.settings.training.canary,
        )
        releases.publish(self.settings, release)
        log.info("published", cluster=cluster, release=release.release_id, epoch=release.epoch)

    def _serving(self, release: Release | None) -> bytes | None:
        if release is None:
            return None
        try:
            return artifacts.get(release.artifact, release.sha256)
        except ArtifactError as error:
            log.warning("serving_adapter_unreadable", release=release.release_id, error=str(error))
            return None

    def _replay(self, cluster: str, found: Sequence[Row]) -> list[Row]:
        """Older examples against forgetting: a share of what newer ones crowd out."""
        older = list(found[:-MOST])
        count = min(len(older), int(self.settings.training.replay * MOST))
        return random.Random(cluster).sample(older, count)

    def _bench(self) -> Bench:
        path = writer_base.locate(self.settings.writer.base_model)
        sha256 = writer_base.fingerprint(path)
        folder = self.folder / f"base-{sha256[:12]}"
        if not (folder / "config.json").exists():
            writer_base.export_hf(writer_base.load(path), folder)
        judge = Judge(self.settings, self.threads)
        return Bench(
            load_base(folder, self.threads), Tokenizer.from_file(str(folder / "tokenizer.json")), judge.model.shape.eos, sha256, judge
        )

    def _record(self, cluster: str, judged: Judgement, examples: int, steps: int, seconds: float) -> None:
        line = {"at": iso(time.time()), "cluster": cluster, "examples": examples, "steps": steps, "seconds": round(seconds, 1)}
        with (self.folder / "refits.jsonl").open("a") as file:
            file.write(json.dumps(line | {"passed": judged.passed, "failed": judged.failed, "metrics": judged.metrics}) + "\n")

    def _read_progress(self) -> dict[str, int]:
        try:
            return dict(json.loads((self.folder / "learned.json").read_text()))
        except (FileNotFoundError, json.JSONDecodeError):
            return {}

    def _write_progress(self) -> None:
        fresh = self.folder / "learned.new"
        fresh.write_text(json.dumps(self.learned))
        fresh.replace(self.folder / "learned.json")
