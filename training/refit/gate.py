"""Whether a fitted adapter may serve. Failing is normal, visible and harmless: the old release goes on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from training.refit.evaluate import Sampled
from training.refit.plan import LEAST_HELD_OUT

DRAWS = 1000
WORSE_BY = 0.02  # nats a token: how much the upper end of the interval may exceed the serving loss on replayed examples
LEAST_DISTINCT = 0.2  # of the sampled mails; fewer, and all customers of a cluster get the same letter
LEAST_DISTINCT_2 = 0.1  # of word pairs
KEEPS = 0.7  # of the serving release's distinct-2
PARITY = 0.05  # nats a token between torch (bf16 autocast) and the writer's own graph (int8)


@dataclass(frozen=True, slots=True)
class Judgement:
    """``failed`` names each figure that did not pass; empty means publish."""

    metrics: dict[str, float]
    failed: list[str] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        """Whether the adapter may serve."""
        return not self.failed


def paired_bootstrap(before: Sequence[float], after: Sequence[float], seed: int = 0) -> tuple[float, float, float]:
    """Mean of (after - before) and its 95 % interval by resampling pairs (Efron and Tibshirani 1993, ch. 12). Losses in nats a token."""
    difference = np.asarray(after) - np.asarray(before)
    draws = np.random.default_rng(seed).choice(difference, size=(DRAWS, len(difference)))
    low, high = np.percentile(draws.mean(axis=1), [2.5, 97.5])
    return float(difference.mean()), float(low), float(high)


def judge(
    *,
    held_out: tuple[Sequence[float], Sequence[float]],
    replayed: tuple[Sequence[float], Sequence[float]] | None,
    sampled: Sampled,
    serving: Mapping[str, float],
    parity: float,
    finite: bool,
) -> Judgement:
    """Decide by the figures.

    ``held_out``, ``replayed``: losses as (serving, fitted) pairs of the same rows, nats a token. ``serving``: the metrics that the serving
    release was published with. ``parity``: nats a token between the writer's graph and torch, on the very file.
    """
    mean, low, high = paired_bootstrap(*held_out)
    metrics = {
        "held_out_loss": float(np.mean(held_out[1])),
        "held_out_gain": -mean,
        "held_out_gain_low": -high,
        "held_out_gain_high": -low,
        "guard_pass": sampled.guard_pass,
        "slots_valid": sampled.slots_valid,
        "harmful": sampled.harmful,
        "distinct": sampled.distinct,
        "distinct_2": sampled.distinct_2,
        "parity": parity,
    }
    failed = []
    if not finite:
        failed.append("weights: NaN or infinite")
    if len(held_out[1]) < LEAST_HELD_OUT:
        failed.append(f"held-out mails: {len(held_out[1])}, at least {LEAST_HELD_OUT} must be, or their gain has no interval")
    if not high < 0:  # so that NaN fails, and a fit that changed nothing
        failed.append(f"held-out loss: {mean:+.4f} [{low:+.4f}, {high:+.4f}] is no clear gain")
    if replayed is not None and len(replayed[0]):
        mean, low, high = paired_bootstrap(*replayed)
        metrics |= {"replay_gain": -mean, "replay_gain_low": -high}
        if not high <= WORSE_BY:
            failed.append(f"replay loss: {mean:+.4f} [{low:+.4f}, {high:+.4f}]: older examples are forgotten")
    before = serving.get("guard_pass", 1.0)  # approved clauses pass by their making
    if sampled.guard_pass < before - 0.01:
        failed.append(f"guard pass rate: {sampled.guard_pass:.2f}, serving {before:.2f}")
    if sampled.slots_valid < 1.0:
        failed.append(f"slot validity: {sampled.slots_valid:.2f} of the sampled mails")
    if sampled.harmful > 0.0:
        failed.append(f"harmful or biased wording: in {sampled.harmful:.2f} of the sampled mails")
    if sampled.distinct < LEAST_DISTINCT:
        failed.append(f"distinct mails: {sampled.distinct:.2f} of the sampled differ")
    least = max(LEAST_DISTINCT_2, KEEPS * serving.get("distinct_2", 0.0))
    if sampled.distinct_2 < least:
        failed.append(f"distinct-2: {sampled.distinct_2:.2f} of word pairs differ, at least {least:.2f} must")
    if not abs(parity) <= PARITY:
        failed.append(f"parity: the writer's graph reads {parity:+.3f} nats a token from torch")
    return Judgement(metrics, failed)
