"""One refit of one cluster: plan, fit, gate, publish. Killed anywhere, the next one goes on; nothing is ever half published."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import structlog
import torch
from safetensors.torch import save as save_tensors
from tokenizers import Tokenizer
from torch.utils.tensorboard import SummaryWriter

from models.phrasebook.style import styles_of
from models.writer import base as writer_base
from schemas.config import Settings, TrainingSettings
from schemas.errors import ArtifactError
from schemas.mail import iso
from schemas.release import Release
from training.feedback.clause_odds import odds_from
from training.feedback.examples import ExampleRow
from training.refit import plan
from training.refit.corpus import enriched
from training.refit.evaluate import SCORED, Judge
from training.refit.fit import Fitted, Recipe, fit, load_base, with_adapter
from training.refit.gate import Judgement, judge
from training.refit.loss import code, losses
from training.rollout import artifacts
from training.rollout.lineage import successor

log = structlog.get_logger()
Step = Callable[[str, int, int, float], None]  # cluster, step, of steps, loss; may raise to stop


@dataclass
class RefitBench:
    """The frozen base, loaded once for a round of fits."""

    model: Any
    tokenizer: Tokenizer
    eos: int
    sha256: str
    judge: Judge


def open_bench(settings: Settings, folder: Path, threads: int) -> RefitBench:
    """Load the base that the writer has, exported once for torch. Raises ModelError."""
    path = writer_base.locate(settings.writer.base_model)
    sha256 = writer_base.fingerprint(path)
    exported = folder / f"base-{sha256[:12]}"
    if not (exported / "config.json").exists():
        writer_base.export_hf(writer_base.load(path), exported)
    opened = Judge(settings, threads)
    tokenizer = Tokenizer.from_file(str(exported / "tokenizer.json"))
    return RefitBench(load_base(exported, threads), tokenizer, opened.model.shape.eos, sha256, opened)


def recipe(training: TrainingSettings, seed: int) -> Recipe:
    """The settings as a fit's recipe."""
    return Recipe(
        rank=training.rank,
        learning_rate=training.learning_rate,
        steps=training.steps,
        batch=training.batch,
        kl=training.kl,
        epsilon=training.epsilon,
        noise=training.noise,
        seed=seed,
    )


class Refit:
    """The refits of one cluster, in their own folder."""

    def __init__(self, settings: Settings, folder: Path, cluster: str) -> None:
        self.settings, self.cluster, self.root = settings, cluster, folder
        self.folder = folder / "clusters" / re.sub(r"[^\w.-]", "_", cluster)
        self.folder.mkdir(parents=True, exist_ok=True)
        self._progress = self.folder / "progress.json"

    def progress(self, before: Release | None) -> tuple[int, int]:
        """Examples at the last refit, passed or not, and at that of the serving release, by its record: another home may have done it."""
        learned = before.examples if before else 0
        try:
            return max(learned, int(json.loads(self._progress.read_text())["tried"])), learned
        except (FileNotFoundError, ValueError, KeyError):
            return learned, learned

    def run(
        self, bench: RefitBench, found: Sequence[ExampleRow], elders: Sequence[ExampleRow], before: Release | None, step: Step
    ) -> tuple[Judgement, Release | None]:
        """Fit and judge; the judgement, and the release to publish where it passed. ``done`` ends it."""
        training = self.settings.training
        serving = self.serving(before)
        began = time.monotonic()
        made = self._plan(found, elders, before)
        chosen = recipe(training, made.examples)
        board = SummaryWriter(str(self.root / "tensorboard" / self.folder.name))

        def told(number: int, loss: float, held_out: float | None) -> None:
            board.add_scalar("loss/train", loss, made.examples * 1000 + number)
            if held_out is not None:
                board.add_scalar("loss/held_out", held_out, made.examples * 1000 + number)
            step(self.cluster, number, chosen.steps, loss)

        learn = enriched(made.learn, bench.judge.book, made.examples)
        try:
            fitted = fit(
                *(bench.model, bench.tokenizer, bench.eos, learn, made.held_out, chosen, serving, told),
                checkpoint=self.folder / "fit.pt",
            )
            fit_seconds = round(time.monotonic() - began, 1)
            data = self._file(bench, fitted, found)
            judged = self._judge(bench, made, fitted, data, serving, before)
            for name, value in judged.metrics.items():
                board.add_scalar(f"gate/{name}", value, made.examples)
        finally:
            board.close()
        seconds = round(time.monotonic() - began, 1)
        took = {"seconds": seconds, "fit_seconds": fit_seconds}
        log.info("refit", cluster=self.cluster, examples=made.examples, steps=fitted.steps, **took, failed=judged.failed)
        self._record(made, fitted, judged, seconds)
        if not judged.passed:
            return judged, None
        url, digest = artifacts.put(self.settings, data)
        release = successor(before, self.cluster, url, digest, bench.sha256, training.rank, iso(time.time()), training.canary)
        metrics = {name: round(value, 5) for name, value in judged.metrics.items()}
        return judged, msgspec.structs.replace(release, metrics=metrics, examples=made.examples)

    def done(self, examples: int) -> None:
        """The round is over: the next refit is another one."""
        fresh = self._progress.with_suffix(".new")
        fresh.write_text(json.dumps({"tried": examples}))
        fresh.replace(self._progress)
        for name in ("plan.msgpack", "fit.pt"):
            (self.folder / name).unlink(missing_ok=True)

    def _plan(self, found: Sequence[ExampleRow], elders: Sequence[ExampleRow], before: Release | None) -> plan.Plan:
        file, serving = self.folder / "plan.msgpack", before.sha256 if before else ""
        made = plan.resume(file, serving, found, elders)
        if made is None:
            (self.folder / "fit.pt").unlink(missing_ok=True)
            made = plan.plan(self.cluster, serving, found, self.progress(before)[1], elders, self.settings.training.replay)
            plan.save(file, made)
        return made

    def serving(self, release: Release | None) -> bytes | None:
        """The adapter's bytes; None for the base alone, and where the file can't be had."""
        if release is None or not release.artifact:
            return None
        try:
            return artifacts.get(release.artifact, release.sha256)
        except ArtifactError as error:
            log.warning("serving_adapter_unreadable", release=release.release_id, error=str(error))
            return None

    def _file(self, bench: RefitBench, fitted: Fitted, found: Sequence[ExampleRow]) -> bytes:
        """The adapter, and beside it what feedback says of each clause: both serve or neither does."""
        rank = self.settings.training.rank
        metadata = {"base_sha256": bench.sha256, "rank": str(rank), "alpha": str(2 * rank), "cluster": self.cluster}
        metadata["odds"] = json.dumps(odds_from(found, styles_of(bench.judge.book)))
        data: bytes = save_tensors({name: tensor.contiguous() for name, tensor in fitted.tensors.items()}, metadata)
        return data

    def _judge(
        self, bench: RefitBench, made: plan.Plan, fitted: Fitted, data: bytes, serving: bytes | None, before: Release | None
    ) -> Judgement:
        finite = all(bool(torch.isfinite(tensor).all()) for tensor in fitted.tensors.values())
        if not finite:  # the writer would refuse the file: nothing more to measure
            return Judgement({}, ["weights: NaN or infinite"])
        in_graph, in_torch = bench.judge.losses(data, made.held_out), fitted.after[:SCORED]
        return judge(
            held_out=(fitted.before, fitted.after),
            replayed=self._replayed(bench, made, data, serving),
            sampled=bench.judge.sample(data, made.held_out),
            serving=before.metrics if before else {},
            parity=sum(in_graph) / len(in_graph) - sum(in_torch) / len(in_torch),
            finite=finite,
        )

    def _replayed(self, bench: RefitBench, made: plan.Plan, data: bytes, serving: bytes | None) -> tuple[list[float], list[float]] | None:
        """Losses on older mails that no refit has learned, before and after."""
        coded = code(bench.tokenizer, made.older, bench.eos)
        if not coded:
            return None
        pair = []
        for adapter in (serving, data):
            model = with_adapter(bench.model, self.settings.training.rank, adapter)
            pair.append(losses(model, coded))
            model.unload()
        return pair[0], pair[1]

    def _record(self, made: plan.Plan, fitted: Fitted, judged: Judgement, seconds: float) -> None:
        line = {
            "at": iso(time.time()),
            "cluster": self.cluster,
            "examples": made.examples,
            "learned": len(made.learn),
            "steps": fitted.steps,
            "resumed_at": fitted.resumed,
            "seconds": seconds,
            "passed": judged.passed,
            "failed": judged.failed,
            "metrics": judged.metrics,
        }
        with (self.root / "refits.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")
