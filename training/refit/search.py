"""``mailtide train search``: learning rate, rank and perturbation tuned on one cluster's examples with Optuna. Publishes nothing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import optuna

from schemas.config import Settings
from schemas.errors import MailtideError
from training.feedback.examples import follow, rows
from training.refit.fit import Recipe, fit
from training.refit.plan import FEWEST, split
from training.refit.refit import Step, open_bench, recipe

NEWEST = 200  # examples that are tried on: the ranking of settings needs no more
RATES = (1e-4, 5e-3)  # learning rates that are tried
JUDGED = 24  # held-out ones among them


def best_settings(settings: Settings, cluster: str | None, trials: int, steps: int, step: Step) -> str:
    """The best found as a ``[training]`` table. The writer's graph has room for ``training.rank``: no larger one is tried.

    Raises MailtideError where there are too few examples.
    """
    folder = Path(settings.home).resolve() / "training"
    follow(settings, folder / "examples")
    found = {name: each for name, each in rows(settings, folder / "examples").items() if name}
    chosen = cluster or max(found, key=lambda name: len(found[name]), default="")
    if len(found.get(chosen, ())) < FEWEST:
        raise MailtideError(f"cluster {chosen!r} has too few examples to try settings on; known: {sorted(found)}")
    bench = open_bench(settings, folder, 1)
    learn, held_out = split(found[chosen][-NEWEST:])
    start = replace(recipe(settings.training, 0), steps=steps, evaluate_every=max(1, steps // 2))

    def objective(trial: optuna.Trial) -> float:
        tried = suggested(trial, start, settings.training.rank)

        def told(number: int, loss: float, seen: float | None) -> None:
            step(f"trial {trial.number + 1} of {trials}", number, steps, loss)
            if seen is not None:
                trial.report(seen, number)
                if trial.should_prune():
                    raise optuna.TrialPruned

        after = fit(bench.model, bench.tokenizer, bench.eos, learn, held_out[-JUDGED:], tried, None, told).after
        return sum(after) / len(after)

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    sampler = optuna.samplers.TPESampler(seed=0, n_startup_trials=max(2, trials // 2))
    study = optuna.create_study(sampler=sampler, pruner=optuna.pruners.MedianPruner(n_startup_trials=2))
    rate = min(max(start.learning_rate, RATES[0]), RATES[1])
    study.enqueue_trial({"learning_rate": rate, "rank": start.rank, "epsilon": min(start.epsilon, 0.2)})
    study.optimize(objective, n_trials=trials)
    return toml(study, chosen)


def suggested(trial: optuna.Trial, start: Recipe, room: int) -> Recipe:
    """One set of settings."""
    ranks = [rank for rank in (2, 4, 8, 16, 32) if rank <= room]
    return replace(
        start,
        learning_rate=trial.suggest_float("learning_rate", *RATES, log=True),
        rank=trial.suggest_categorical("rank", sorted({*ranks, room})),
        epsilon=trial.suggest_float("epsilon", 0.0, 0.2),
    )


def toml(study: optuna.Study, cluster: str) -> str:
    """What goes into ``mailtide.toml``, with what it was found by."""
    best = study.best_trial
    first = study.trials[0].value
    lines = [
        f"# cluster {cluster}: held-out loss {best.value:.4f} nats a token, best of {len(study.trials)} trials",
        f"# (with the present settings, as far as they are in range, {first:.4f})",
        "[training]",
        f"learning_rate = {best.params['learning_rate']:.2e}",
        f"rank = {best.params['rank']}",
        f"epsilon = {best.params['epsilon']:.3f}",
    ]
    return "\n".join(lines)
