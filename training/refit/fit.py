"""LoRA on the frozen base for one cluster: weighted examples, adversarial embeddings, KL to what serves, early stop, resume."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, PeftModel, get_peft_model, set_peft_model_state_dict
from safetensors.torch import load as load_tensors
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM
from transformers.utils import logging as transformers_logging

from training.feedback.examples import ExampleRow
from training.refit.loss import Coded, PaddedBatch, code, embed, losses, neftune, pad, reach, row_losses, uphill

LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
WARM_UP = 5  # steps, or a quarter of a short fit
MICRO = 2  # examples in one pass: a larger batch is gathered over several, in a third less memory and the same seconds
Progress = Callable[[int, float, float | None], None]


@dataclass(frozen=True, slots=True)
class Recipe:
    """How to fit. ``epsilon`` (share of the embeddings' mean norm) > 0: adversarial, ``ascents`` 1 = FGM, more = PGD.

    ``noise`` > 0: NEFTune's alpha. ``kl``: weight of the divergence from the model that serves.
    """

    rank: int = 8
    learning_rate: float = 1e-3
    steps: int = 20
    batch: int = 8
    kl: float = 0.1
    epsilon: float = 0.0
    ascents: int = 1
    noise: float = 0.0
    patience: int = 3
    evaluate_every: int = 5
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Fitted:
    """A fitted adapter: PEFT's own tensors, and the losses (nats a token) on the held-out rows, one a row.

    ``resumed``: the step of an earlier, killed fit from which this one went on.
    """

    tensors: dict[str, torch.Tensor]
    before: list[float]
    after: list[float]
    steps: int
    resumed: int = 0


def load_base(folder: Path, threads: int) -> Any:
    """The frozen base as a torch model, from a Hugging Face folder. bf16 where the hardware has it, else fp32."""
    torch.set_num_threads(threads)
    transformers_logging.disable_progress_bar()  # ours say more
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    model.config.use_cache = False
    return model.cuda() if torch.cuda.is_available() else model


def with_adapter(base: Any, rank: int, serving: bytes | None) -> Any:
    """The base under a LoRA: the serving adapter's weights where there is one of this rank, else a fresh one that changes nothing."""
    config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=LINEARS, lora_dropout=0.0, task_type="CAUSAL_LM")
    model = get_peft_model(base, config)
    if serving is not None:
        tensors = load_tensors(serving)
        if next(t for name, t in tensors.items() if "lora_A" in name).shape[0] == rank:
            set_peft_model_state_dict(model, tensors)
    return model


def fit(
    base: Any,
    tokenizer: Tokenizer,
    eos: int,
    learn: Sequence[ExampleRow],
    held_out: Sequence[ExampleRow],
    recipe: Recipe,
    serving: bytes | None = None,
    progress: Progress = lambda _step, _loss, _held_out: None,
    checkpoint: Path | None = None,
) -> Fitted:
    """Fit one adapter; stops early when the held-out loss no longer falls, and keeps the best step's weights.

    ``progress`` gets step, loss and, where it was just taken, the held-out loss.
    With ``checkpoint`` a fit that was killed goes on where it last evaluated, if data and recipe are still the same.
    """
    torch.manual_seed(recipe.seed)
    model: PeftModel = with_adapter(base, recipe.rank, serving)
    train, check = code(tokenizer, learn, eos), code(tokenizer, held_out, eos)
    key = _key(train, check, recipe, serving)
    try:
        return _fit(_Run(model, recipe), train, check, recipe, progress, checkpoint, key)
    finally:
        model.unload()  # whatever ended the fit, the base is bare again


def _fit(
    run: _Run, train: Sequence[Coded], check: Sequence[Coded], recipe: Recipe, progress: Progress, checkpoint: Path | None, key: str
) -> Fitted:
    picked = _picked(len(train), recipe)
    if not run.resume(checkpoint, key):
        run.before = run.best_losses = losses(run.model, check)
        if recipe.kl:
            drawn = sorted({n for batch in picked for n in batch})
            run.reference = dict(zip(drawn, losses(run.model, [train[n] for n in drawn]), strict=True))
    begun = run.step
    while run.step < recipe.steps and run.bad < recipe.patience:
        rows = picked[run.step]
        loss = run.learn([train[n] for n in rows], [run.reference.get(n) for n in rows])
        now: list[float] | None = None
        if run.step % recipe.evaluate_every == 0 or run.step == recipe.steps:
            now = losses(run.model, check)
            run.judge(now)
            run.keep(checkpoint, key)
        progress(run.step, loss, _mean(now) if now else None)
    return Fitted(run.best, run.before, run.best_losses, run.step, begun)


def _picked(examples: int, recipe: Recipe) -> list[list[int]]:
    """The rows of each step, drawn ahead: the same after a kill."""
    order = np.random.default_rng(recipe.seed)
    return [order.choice(examples, size=min(recipe.batch, examples), replace=False).tolist() for _ in range(recipe.steps)]


def _key(train: Sequence[Coded], check: Sequence[Coded], recipe: Recipe, serving: bytes | None) -> str:
    """Names one fit by all that it depends on."""
    digest = hashlib.sha256(repr(astuple(recipe)).encode())
    digest.update(serving or b"")
    for one in (*train, *check):
        digest.update(repr((one.ids, one.start, round(one.weight, 6))).encode())
    return digest.hexdigest()


class _Run:
    """The state of one fit, which a checkpoint holds whole."""

    def __init__(self, model: PeftModel, recipe: Recipe) -> None:
        self.model, self.recipe = model, recipe
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(self.parameters, lr=recipe.learning_rate, weight_decay=0.0)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimizer, lambda step: _rate(step, recipe.steps))
        self.step = self.bad = 0
        self.before: list[float] = []
        self.best_losses: list[float] = []
        self.best = _state(model)
        self.reference: dict[int, float] = {}

    def learn(self, part: Sequence[Coded], reference: Sequence[float | None]) -> float:
        """One step over a batch, gathered in small passes; its mean loss."""
        self.model.train()
        total = 0.0
        passes = math.ceil(len(part) / MICRO)
        for at in range(0, len(part), MICRO):
            batch = pad(part[at : at + MICRO], self.model.device)
            total += _learn(self.model, batch, reference[at : at + MICRO], self.recipe, len(batch.ids) / len(part))
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        self.schedule.step()
        self.optimizer.zero_grad()
        self.step += 1
        return total / passes

    def judge(self, now: list[float]) -> None:
        """Keep the best weights so far."""
        if _mean(now) < _mean(self.best_losses) - 1e-4:
            self.best, self.best_losses, self.bad = _state(self.model), now, 0
        else:
            self.bad += 1

    def keep(self, file: Path | None, key: str) -> None:
        """Whole or not at all."""
        if file is None:
            return
        fresh = file.with_suffix(f".{os.getpid()}.new")
        kept = {
            "key": key,
            "weights": _state(self.model),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "random": torch.get_rng_state(),
            "rest": {name: getattr(self, name) for name in ("step", "bad", "before", "best_losses", "best", "reference")},
        }
        torch.save(kept, fresh)
        fresh.replace(file)

    def resume(self, file: Path | None, key: str) -> bool:
        """Go on from ``file``; False where there is none, or it is another fit's."""
        if file is None or not file.is_file():
            return False
        try:
            kept = torch.load(file, weights_only=True)
        except Exception:  # torn or foreign: a fit begun anew is the mend
            return False
        if kept.get("key") != key:
            return False
        set_peft_model_state_dict(self.model, kept["weights"])
        self.optimizer.load_state_dict(kept["optimizer"])
        self.schedule.load_state_dict(kept["schedule"])
        torch.set_rng_state(kept["random"])
        for name, value in kept["rest"].items():
            setattr(self, name, value)
        return True


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else math.inf


def _rate(step: int, steps: int) -> float:
    warm_up = min(WARM_UP, max(1, steps // 4))
    if step < warm_up:
        return (step + 1) / warm_up
    return 0.5 * (1 + math.cos(math.pi * (step - warm_up) / max(1, steps - warm_up)))


def _state(model: PeftModel) -> dict[str, torch.Tensor]:
    """PEFT's own names, as ``save_pretrained`` would write them."""
    return {name.replace(".default", ""): tensor.detach().cpu().clone() for name, tensor in model.state_dict().items() if "lora_" in name}


def _learn(model: Any, batch: PaddedBatch, reference: Sequence[float | None], recipe: Recipe, share: float) -> float:
    """Gradients of one pass, ``share`` of the step's: clean (or noisy), and with the embeddings moved against the model."""
    clean = embed(model, batch)
    started = neftune(clean, batch.mask, recipe.noise) if recipe.noise else clean
    if not recipe.epsilon:
        loss = _objective(row_losses(model, started, batch), batch, reference, recipe.kl)
        (share * loss).backward()
        return float(loss.detach())
    # Every gradient on the way up counts for the weights too (Zhu et al. 2020, FreeLB, arXiv 1909.11764).
    moved, first = started, 0.0
    limit = float(reach(clean, batch.mask, recipe.epsilon))
    for ascent in range(recipe.ascents + 1):
        moved = moved.detach().requires_grad_(ascent < recipe.ascents)
        loss = _objective(row_losses(model, moved, batch), batch, reference, recipe.kl)
        (share / (recipe.ascents + 1) * loss).backward()
        first = first or float(loss.detach())
        if moved.grad is not None:
            delta = moved.detach() - started + uphill(clean, moved.grad, batch.mask, recipe.epsilon / max(1.0, recipe.ascents / 2))
            moved = started + delta * (limit / delta.norm(dim=-1, keepdim=True).clamp(min=limit))
    return first


def _objective(each: torch.Tensor, batch: PaddedBatch, reference: Sequence[float | None], kl: float) -> torch.Tensor:
    loss = (batch.weight * each).mean()
    known = [n for n, value in enumerate(reference) if value is not None]
    if kl and known:
        ratio = torch.tensor([reference[n] for n in known], device=each.device) - each[known]  # log(new/serving) a token
        # Schulman's k3 estimator on the examples' own tokens: never negative, low variance (joschu.net/blog/kl-approx).
        loss = loss + kl * (torch.exp(ratio) - 1 - ratio).mean()
    return loss
