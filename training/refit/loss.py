"""Losses of examples under a LoRA model, and the perturbations of its embeddings that a fit learns to withstand."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from tokenizers import Tokenizer
from torch.nn import functional as F

from training.feedback.examples import ExampleRow

LONGEST = 320  # tokens of prompt and text; a mail has some 150


@dataclass(frozen=True, slots=True)
class Coded:
    """One example in tokens; the loss counts from ``start`` on."""

    ids: list[int]
    start: int
    weight: float


class PaddedBatch(NamedTuple):
    """Padded examples: ``ids`` i64[B,T], ``mask`` 1 where there is a token, ``target`` 1 where its loss counts."""

    ids: torch.Tensor
    mask: torch.Tensor
    target: torch.Tensor
    weight: torch.Tensor


def code(tokenizer: Tokenizer, rows: Sequence[ExampleRow], eos: int) -> list[Coded]:
    """Prompt and text in tokens, as the writer sees them; what is too long is left out."""
    coded = []
    for row in rows:
        prompt = tokenizer.encode(row.prompt, add_special_tokens=False).ids
        ids = [*prompt, *tokenizer.encode(row.text, add_special_tokens=False).ids, eos]
        if len(ids) <= LONGEST:
            coded.append(Coded(ids, len(prompt), row.weight))
    return coded


def pad(part: Sequence[Coded], device: Any) -> PaddedBatch:
    """Right-padded to the longest."""
    width = max(len(one.ids) for one in part)
    ids, mask, target = (torch.zeros(len(part), width, dtype=torch.long) for _ in range(3))
    for n, one in enumerate(part):
        ids[n, : len(one.ids)] = torch.tensor(one.ids)
        mask[n, : len(one.ids)] = 1
        target[n, one.start : len(one.ids)] = 1
    weight = torch.tensor([one.weight for one in part])
    return PaddedBatch(ids.to(device), mask.to(device), target.to(device), weight.to(device))


def row_losses(model: Any, embedded: torch.Tensor, batch: PaddedBatch) -> torch.Tensor:
    """Mean negative log-likelihood a token of each row's text (nats), from embeddings f32[B,T,width].

    The vocabulary's logits, a fifth of the work, are taken only where a loss is wanted.
    """
    inner = model.get_base_model()
    wanted = batch.target[:, 1:].bool()
    kind = embedded.device.type
    with torch.autocast(kind, dtype=torch.bfloat16, enabled=bf16_pays(kind)):
        hidden = inner.model(inputs_embeds=embedded, attention_mask=batch.mask).last_hidden_state
        logits = inner.lm_head(hidden[:, :-1][wanted])
    nll = F.cross_entropy(logits.float(), batch.ids[:, 1:][wanted], reduction="none")
    total = torch.zeros(len(batch.ids), device=nll.device).index_add(0, torch.nonzero(wanted)[:, 0], nll)
    return total / wanted.sum(1).clamp(min=1)


def embed(model: Any, batch: PaddedBatch) -> torch.Tensor:
    """The tokens' embeddings, cut from the graph: the base is frozen."""
    found: torch.Tensor = model.get_input_embeddings()(batch.ids).detach()
    return found


def losses(model: Any, coded: Sequence[Coded], batch: int = 2, epsilon: float = 0.0) -> list[float]:
    """Mean nats a token of each example's text; ``epsilon`` > 0: with the embeddings moved that far against the model (one FGM step).

    ``batch`` examples at a time: eight need half a GB more for the vocabulary's logits, and no second less on a CPU.
    """
    found: list[float] = []
    model.eval()
    for at in range(0, len(coded), batch):
        made = pad(coded[at : at + batch], model.device)
        embedded = embed(model, made)
        if epsilon:
            embedded.requires_grad_()
            (gradient,) = torch.autograd.grad(row_losses(model, embedded, made).sum(), embedded)
            embedded = embedded.detach() + uphill(embedded, gradient, made.mask, epsilon)
        with torch.no_grad():
            found += row_losses(model, embedded, made).tolist()
    return found


def uphill(embedded: torch.Tensor, gradient: torch.Tensor, mask: torch.Tensor, epsilon: float) -> torch.Tensor:
    """The step that raises the loss fastest: each token's gradient at length ``epsilon`` times the batch's mean embedding norm.

    FGM after Miyato et al. 2017 (arXiv 1605.07725), token by token.
    """
    gradient = gradient * mask.unsqueeze(-1)
    return reach(embedded, mask, epsilon) * gradient / gradient.norm(dim=-1, keepdim=True).clamp(min=1e-12)


def reach(embedded: torch.Tensor, mask: torch.Tensor, epsilon: float) -> torch.Tensor:
    """``epsilon`` in the units of the embeddings: a scalar tensor."""
    norms = embedded.detach().norm(dim=-1) * mask
    return epsilon * norms.sum() / mask.sum()


def neftune(embedded: torch.Tensor, mask: torch.Tensor, alpha: float) -> torch.Tensor:
    """Uniform noise of size alpha / sqrt(length * width), after Jain et al. 2023 (arXiv 2310.05914): one pass, no gradient."""
    lengths = mask.sum(1).clamp(min=1).view(-1, 1, 1)
    noise = torch.empty_like(embedded).uniform_(-1, 1)
    return embedded + noise * (alpha / torch.sqrt(lengths * embedded.shape[-1])) * mask.unsqueeze(-1)


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
