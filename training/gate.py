"""Whether a fitted adapter may serve. Failing is normal, visible and harmless: the old release goes on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

DRAWS = 1000
WORSE_BY = 0.02  # nats a token: how much the upper end of the interval may exceed the serving loss on replayed examples
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
    guard_pass: float,
    serving_guard_pass: float,
    distinct: float,
    parity: float,
    finite: bool,
) -> Judgement:
    """Decide by the figures: losses as (serving, fitted) pairs of the same rows; shares in [0, 1]; ``parity`` in nats a token."""
    mean, low, high = paired_bootstrap(*held_out)
    metrics = {
        "held_out_loss": float(np.mean(held_out[1])),
        "held_out_gain": -mean,
        "held_out_gain_low": -high,
        "guard_pass": guard_pass,
        "distinct": distinct,
        "parity": parity,
    }
    failed = []
    if not finite:
        failed.append("weights: NaN or infinite")
    if high > 0:
        failed.append(f"held-out loss: {mean:+.4f} [{low:+.4f}, {high:+.4f}] is no clear gain")
    if replayed is not None and len(replayed[0]):
        mean, _, high = paired_bootstrap(*replayed)
        metrics["replay_gain"] = -mean
        if high > WORSE_BY:
            failed.append(f"replay loss: {mean:+.4f}, up to {high:+.4f}: older examples are forgotten")
    if guard_pass < serving_guard_pass - 0.01:
        failed.append(f"guard pass rate: {guard_pass:.2f}, serving {serving_guard_pass:.2f}")
    if distinct < 0.2:
        failed.append(f"distinct mails: {distinct:.2f} of the sampled differ")
    if abs(parity) > PARITY:
        failed.append(f"parity: the writer's graph reads {parity:+.3f} nats a token from torch")
    return Judgement(metrics, failed)
