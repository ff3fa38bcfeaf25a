"""The study's runs as a figure and a table under ``docs/``."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

STYLE = {
    "fixed": ("0.55", ":"),
    "plain bandit": ("tab:orange", "-"),
    "adapter": ("tab:blue", "-"),
    "odds alone": ("tab:olive", "--"),
    "blend": ("tab:green", "-"),
}
BINS = 20  # points of a curve in each round


def write(docs: Path, home: Path, mark: str, size: Mapping[str, Any]) -> None:
    """``learning.png`` and ``learning.md`` from every run that is there."""
    runs = {policy: _load(home, mark, policy, size["clusters"]) for policy in STYLE}
    docs.mkdir(parents=True, exist_ok=True)
    _figure(docs / "learning.png", runs, size)
    (docs / "learning.md").write_text(_page(runs, size))


def _load(home: Path, mark: str, policy: str, clusters: int) -> list[dict[str, Any]]:
    files = [file for n in range(clusters) for file in sorted(home.glob(f"{mark}-*-c{n}-{policy.replace(' ', '-')}.json"))]
    return [json.loads(file.read_text()) for file in files]


def _curves(runs: Sequence[Mapping[str, Any]], key: str, width: int) -> NDArray[np.float64]:
    """f64[runs,points]: means over ``width`` sends."""
    return np.array([np.reshape(run[key][: len(run[key]) // width * width], (-1, width)).mean(1) for run in runs], float)


def _figure(file: Path, runs: Mapping[str, list[dict[str, Any]]], size: Mapping[str, Any]) -> None:
    # Late: a run needs no figures.
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    width = max(1, size["sends"] // BINS)
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(13, 4), layout="constrained")
    for policy, (colour, line) in STYLE.items():
        if not runs[policy]:
            continue
        share, regret = _curves(runs[policy], "in_taste", width), np.cumsum(_curves(runs[policy], "regret", width) * width, axis=1)
        at = (np.arange(share.shape[1]) + 1) * width
        for axis, curve in ((left, share), (middle, regret)):
            axis.plot(at, curve.mean(0), color=colour, linestyle=line, label=policy)
            axis.fill_between(at, curve.min(0), curve.max(0), color=colour, alpha=0.12, linewidth=0)
        if runs[policy][0]["held_out"]:
            held = np.array([run["held_out"] for run in runs[policy]])
            right.plot(range(held.shape[1]), held.mean(0), "o-", color=colour, label=policy)
            right.fill_between(range(held.shape[1]), held.min(0), held.max(0), color=colour, alpha=0.12, linewidth=0)
    left.axhline(0.8, color="0.8", linewidth=1)
    left.set(title="mails in the cluster's taste", xlabel="mails sent to a cluster", ylim=(0, 1))
    middle.set(title="regret (reward lost, added up)", xlabel="mails sent to a cluster")
    right.set(title="triggers never trained on, in the right tone", xlabel="refits", ylim=(0, 1))
    middle.legend(frameon=False)
    figure.savefig(file, dpi=110)
    plt.close(figure)


def _page(runs: Mapping[str, list[dict[str, Any]]], size: Mapping[str, Any]) -> str:
    sends, rows = size["sends"], []
    for policy, found in runs.items():
        if not found:
            continue
        shares = _curves(found, "in_taste", sends)
        regret = np.array([sum(run["regret"]) for run in found])
        to_80 = [_first(run["in_taste"]) for run in found]
        reached = [n for n in to_80 if n is not None]
        when = f"{np.median(reached):,.0f} ({len(reached)} of {len(found)} runs)" if reached else f"never (0 of {len(found)} runs)"
        rows.append(f"| {policy} | {_spread(shares[:, 0])} | {_spread(shares[:, -1])} | {when} | {regret.mean():,.0f} ({_ends(regret)}) |")
    lines = [
        "| policy | served without exploring, before | after the last refit | held-out triggers, before | after the last refit |",
        "|---|---|---|---|---|",
    ]
    for policy, found in runs.items():
        if found and found[0]["held_out"]:
            served, held = (np.array([run[key] for run in found]) for key in ("served", "held_out"))
            lines.append(
                f"| {policy} | {_spread(served[:, 0])} | {_spread(served[:, -1])} | {_spread(held[:, 0])} | {_spread(held[:, -1])} |"
            )
    lost = {policy: np.mean([sum(run["regret"]) for run in found]) for policy, found in runs.items() if found}
    ranks = ", ".join(f"{policy} {lost[policy]:,.0f}" for policy in sorted(lost, key=lost.__getitem__))
    pairs = list(zip(runs["blend"], runs["plain bandit"], strict=False))
    ahead = f"{sum(sum(one['regret']) < sum(other['regret']) for one, other in pairs)} of {len(pairs)} runs"
    late, late_bandit = (
        f"{np.mean([sum(run['regret'][-sends:]) for run in runs[policy]]) if runs[policy] else 0:.0f}"
        for policy in ("blend", "plain bandit")
    )
    carried = "; ".join(f"{policy} {', '.join(map(_way, found))}" for policy, found in runs.items() if found and found[0]["held_out"])
    tastes = ", ".join("/".join(run["taste"].values()) for run in runs["fixed"])
    seconds = sum(run["seconds"] for found in runs.values() for run in found)
    return PAGE.format(
        table="\n".join(rows),
        held="\n".join(lines),
        ranks=ranks,
        ahead=ahead,
        late=late,
        late_bandit=late_bandit,
        carried=carried,
        tastes=tastes,
        minutes=seconds / 60,
        **size,
    )


def _spread(values: NDArray[np.float64]) -> str:
    return f"{values.mean():.1%} ({values.min():.1%} to {values.max():.1%})"


def _way(run: Mapping[str, Any]) -> str:
    return f"{run['held_out'][0]:.0%} to {run['held_out'][-1]:.0%}"


def _ends(values: NDArray[np.float64]) -> str:
    return f"{values.min():,.0f} to {values.max():,.0f}"


def _first(in_taste: Sequence[bool], width: int = 200) -> int | None:
    """Sends after which 80 % of the last ``width`` were in taste; None where that never was."""
    kept = np.convolve(np.array(in_taste, float), np.ones(width) / width, "valid")
    over = np.flatnonzero(kept >= 0.8)
    return int(over[0]) + width if len(over) else None


PAGE = """# Does it learn?

Made by `python -m training.research.study --rounds {rounds} --sends {sends} --seeds {seeds} --clusters {clusters} \
--moves {moves} --steps {steps} --first {first}` \
({minutes:.0f} minutes of wall time, on a shared machine). Each run's raw figures stay in `.mailtide/study`.

![share of mails in taste, regret, held-out triggers](learning.png)

**The readers are simulated** (`models/learning/simulated_reader.py`): each cluster of each seed has a hidden taste \
(tone, length, whether the subject says "you"); here {tastes}. \
They open by the subject, click by tone and length, with noise: the best mail there can be is clicked by one reader in three. \
A mail is *in taste* when all three are right. \
The policies see opens, clicks, orders and objections, never the taste. \
Bands and brackets are the least and the most of all {runs} runs.

| policy | in taste, first {sends} mails | in taste, last {sends} mails | 80 % reached after | regret, all mails |
|---|---|---|---|---|
{table}

*Fixed*: tone by lot, base model. *Plain bandit*: linear Thompson sampling over tones and clauses, no language model. \
*Adapter*: tone by the bandit, clauses by the model under a LoRA refitted on what was sent. \
*Blend*: the same, and the odds that feedback gives each clause and its style \
(`models/learning/clause_odds.py`, `models/phrasebook/style.py`) lean the model's choice. *Odds alone*: the blend without refits, \
on the base model, which the writer asks at a higher temperature. \
All but the plain bandit draw a clause uniformly in 10 % of moves, all but it and fixed a tone in 6 % of mails, and these count: \
a policy that serves nothing else out of taste still has 85 to 90 % in taste.

Regret, least first: {ranks}; the blend lost less than the plain bandit in {ahead}. \
Its lead is made early: in the last {sends} mails it lost {late}, the plain bandit {late_bandit}, which explores less and less by itself. \
Tones, odds and the plain bandit are thought over after every 100 mails; \
adapter and blend are refitted after the first 100 mails and after every {sends}. \
The service works as the blend does: a release carries the odds beside its adapter, and the trainer publishes newer ones between refits.

## Triggers that no refit saw

{held}

Neither sent nor fitted. Held-out mails are judged in the cluster's right tone, so chance is that of length and subject alone. \
A bandit over clauses alone knows nothing of clauses that were never sent; the odds know their style. \
In each run, before and after: {carried}. The adapter alone hardly carries over: what does is the odds' doing.

## What it is not

Mails have the moves {moves} only, the triggers learned are three, the contexts are one for all customers, \
layers below {first} are frozen, and the readers' tastes are of three parts that the phrase book can serve. \
The refit is `training/research/policy.py`'s, whose loss stands on the branches where the model chooses; \
the training service fits whole texts (`training/refit/fit.py`), which this page says nothing of. \
It shows that the loop learns what there is to learn, not what real customers like.
"""
