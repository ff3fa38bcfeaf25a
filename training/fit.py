"""LoRA on the frozen base for one cluster: weighted examples, adversarial embeddings, replay, KL to the serving adapter, early stop."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, PeftModel, get_peft_model, set_peft_model_state_dict
from safetensors.torch import load as load_tensors
from tokenizers import Tokenizer
from torch.nn import functional as F
from transformers import AutoModelForCausalLM

from training.examples import Row

LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
LONGEST = 320  # tokens of prompt and text; a mail has some 200
WARM_UP = 5  # steps
HELD_OUT = 0.2


@dataclass(frozen=True, slots=True)
class Recipe:
    """How to fit. ``epsilon`` scales the perturbation to the embeddings' mean norm; 0 turns it off."""

    rank: int = 8
    learning_rate: float = 1e-3
    steps: int = 30
    batch: int = 8
    kl: float = 0.1
    epsilon: float = 0.05
    patience: int = 3
    evaluate_every: int = 5
    seed: int = 0
    threads: int = 2


@dataclass(frozen=True, slots=True)
class Fitted:
    """A fitted adapter: PEFT's own tensors and the losses (nats a token) on the held-out rows, one a row."""

    tensors: dict[str, torch.Tensor]
    before: list[float]
    after: list[float]
    steps: int


@dataclass(frozen=True, slots=True)
class Coded:
    """One example in tokens; the loss counts from ``start`` on."""

    ids: list[int]
    start: int
    weight: float


def code(tokenizer: Tokenizer, rows: Sequence[Row], eos: int) -> list[Coded]:
    """Prompt and text in tokens, as the writer sees them; what is too long is left out."""
    coded = []
    for row in rows:
        prompt = tokenizer.encode(row.prompt, add_special_tokens=False).ids
        ids = [*prompt, *tokenizer.encode(row.text, add_special_tokens=False).ids, eos]
        if len(ids) <= LONGEST:
            coded.append(Coded(ids, len(prompt), row.weight))
    return coded


def split(rows: Sequence[Row]) -> tuple[list[Row], list[Row]]:
    """Rows to learn from and rows held out: every fifth, spread over time, the same at each call."""
    step = round(1 / HELD_OUT)
    return [row for n, row in enumerate(rows) if n % step], [row for n, row in enumerate(rows) if n % step == 0]


def load_base(folder: Path, threads: int) -> Any:
    """The frozen base as a torch model, from a Hugging Face folder. bf16 where the hardware has it, else fp32."""
    torch.set_num_threads(threads)
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


def losses(model: Any, coded: Sequence[Coded], batch: int = 8) -> list[float]:
    """Mean negative log likelihood a token of each example's text, in nats."""
    found: list[float] = []
    model.eval()
    with torch.no_grad():
        for at in range(0, len(coded), batch):
            part = coded[at : at + batch]
            ids, mask, target = _pad(part, model.device)
            embedded = model.get_input_embeddings()(ids)
            found += _row_losses(_logits(model, embedded, mask), ids, target).tolist()
    return found


def fit(
    base: Any,
    tokenizer: Tokenizer,
    eos: int,
    learn: Sequence[Row],
    held_out: Sequence[Row],
    recipe: Recipe,
    serving: bytes | None = None,
    progress: Callable[[int, float], None] = lambda _step, _loss: None,
) -> Fitted:
    """Fit one adapter; stops early when the held-out loss no longer falls, and keeps the best step's weights.

    Adversarial training is FGM on the embeddings (Miyato et al. 2017, arXiv
    1605.07725); the KL term keeps the policy near the base's, so that refits can't drift without end.
    """
    torch.manual_seed(recipe.seed)
    order = np.random.default_rng(recipe.seed)
    model: PeftModel = with_adapter(base, recipe.rank, serving)
    train, check = code(tokenizer, learn, eos), code(tokenizer, held_out, eos)
    before = losses(model, check)
    reference: dict[int, float] = {}
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=recipe.learning_rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, recipe.steps))
    best, best_state, bad, step = _mean(before), _state(model), 0, 0
    best_losses = before
    for step in range(1, recipe.steps + 1):
        model.train()
        picked = order.choice(len(train), size=min(recipe.batch, len(train)), replace=False)
        if recipe.kl:
            _refer(model, train, picked.tolist(), reference, recipe)
        loss = _step(model, [train[n] for n in picked], [reference.get(n) for n in picked.tolist()], recipe)
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        progress(step, loss)
        if step % recipe.evaluate_every == 0 or step == recipe.steps:
            now = losses(model, check)
            if _mean(now) < best - 1e-4:
                best, best_state, best_losses, bad = _mean(now), _state(model), now, 0
            elif (bad := bad + 1) >= recipe.patience:
                break
    model.unload()
    return Fitted(best_state, before, best_losses, step)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else math.inf


def _rate(step: int, steps: int) -> float:
    if step < WARM_UP:
        return (step + 1) / WARM_UP
    return 0.5 * (1 + math.cos(math.pi * (step - WARM_UP) / max(1, steps - WARM_UP)))


def _state(model: PeftModel) -> dict[str, torch.Tensor]:
    """PEFT's own names, as ``save_pretrained`` would write them."""
    return {name.replace(".default", ""): tensor.detach().cpu().clone() for name, tensor in model.state_dict().items() if "lora_" in name}


def _pad(part: Sequence[Coded], device: Any) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    width = max(len(one.ids) for one in part)
    ids, mask, target = (torch.zeros(len(part), width, dtype=torch.long) for _ in range(3))
    for n, one in enumerate(part):
        ids[n, : len(one.ids)] = torch.tensor(one.ids)
        mask[n, : len(one.ids)] = 1
        target[n, one.start : len(one.ids)] = 1
    return ids.to(device), mask.to(device), target.to(device)


@lru_cache(maxsize=2)
def bf16_pays(device: str) -> bool:
    """Whether bf16 is the faster type here: with AMX or AVX512-BF16 3.5 times fp32's speed, without them a tenth of it. Measured once."""
    if device != "cpu":
        return True
    seconds = []
    for kind in (torch.float32, torch.bfloat16):
        matrix = torch.ones(256, 576, dtype=kind)
        other = torch.ones(576, 576, dtype=kind)
        matrix @ other  # the first call prepares
        began = time.perf_counter()
        for _ in range(3):
            matrix @ other
        seconds.append(time.perf_counter() - began)
    return seconds[1] < seconds[0]


def _logits(model: Any, embedded: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    kind = embedded.device.type
    with torch.autocast(kind, dtype=torch.bfloat16, enabled=bf16_pays(kind)):
        logits: torch.Tensor = model(inputs_embeds=embedded, attention_mask=mask).logits
    return logits


def _row_losses(logits: torch.Tensor, ids: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    wanted = target[:, 1:].bool()
    picked = logits[:, :-1][wanted].float()  # the vocabulary's softmax only where a loss is wanted
    nll = F.cross_entropy(picked, ids[:, 1:][wanted], reduction="none")
    rows = torch.nonzero(wanted)[:, 0]
    total = torch.zeros(len(ids), device=nll.device).index_add(0, rows, nll)
    return total / wanted.sum(1).clamp(min=1)


def _refer(model: Any, train: Sequence[Coded], picked: Sequence[int], known: dict[int, float], recipe: Recipe) -> None:
    """The frozen base's loss of each picked example, taken once: the KL term is estimated on the examples' own tokens."""
    missing = [n for n in picked if n not in known]
    if missing:
        with model.disable_adapter():
            known.update(zip(missing, losses(model, [train[n] for n in missing], recipe.batch), strict=True))
        model.train()


def _step(model: Any, part: Sequence[Coded], reference: Sequence[float | None], recipe: Recipe) -> float:
    ids, mask, target = _pad(part, model.device)
    weight = torch.tensor([one.weight for one in part], device=ids.device)
    embedded = model.get_input_embeddings()(ids).detach().requires_grad_(recipe.epsilon > 0)
    loss = _objective(_logits(model, embedded, mask), ids, target, weight, reference, recipe.kl)
    loss.backward()
    if recipe.epsilon > 0 and embedded.grad is not None:
        gradient = embedded.grad * mask.unsqueeze(-1)
        size = embedded.detach().norm(dim=-1, keepdim=True).mean() * recipe.epsilon
        moved = embedded.detach() + size * gradient / gradient.norm(dim=-1, keepdim=True).clamp(min=1e-12)
        _objective(_logits(model, moved, mask), ids, target, weight, reference, recipe.kl).backward()
    return float(loss.detach())


def _objective(
    logits: torch.Tensor, ids: torch.Tensor, target: torch.Tensor, weight: torch.Tensor, reference: Sequence[float | None], kl: float
) -> torch.Tensor:
    each = _row_losses(logits, ids, target)
    loss = (weight * each).mean()
    known = [n for n, value in enumerate(reference) if value is not None]
    if kl and known:
        serving = torch.tensor([reference[n] for n in known], device=each.device)
        ratio = serving - each[known]  # log(new/serving) a token
        # Schulman's k3 estimator: never negative, low variance (joschu.net/blog/kl-approx).
        loss = loss + kl * (torch.exp(ratio) - 1 - ratio).mean()
    return loss
