"""What each part of the recipe is worth, on the default base. ``python -m training.research.ablation`` writes docs/training.md.

Mails are composed from the phrase book, subject and preheader only, so that two
cores need minutes. A cluster's taste is a third of the clauses, which it gets
in four of five mails. Every arm is kept in a file as soon as it is done: a run
that is cut off goes on, and ``--only`` runs a part.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import zlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from safetensors.torch import save as save_tensors
from tokenizers import Tokenizer

from models.mail.slots import ALWAYS
from models.phrasebook.book import TONES, Book
from models.writer import base as writer_base
from models.writer.prompt import Prompt, render
from training.feedback.examples import ExampleRow
from training.refit.fit import Fitted, Recipe, fit, load_base, with_adapter
from training.refit.loss import code, losses

CLUSTERS, LEARN, HELD_OUT, SEEDS = 2, 40, 10, 3
MOVES = ("subject", "preheader")
THIRDS = 3
TASTE = 0.8  # of a cluster's mails whose clauses are of its third
EPSILON = 0.05
RECIPE = Recipe(learning_rate=1e-3, steps=8, batch=2, kl=0.0, evaluate_every=5, patience=99)
STAGES = ("welcome", "replenishment", "coupon", "win_back", "recommendation")  # one new kind of mail a refit
MARKS = ("<!-- measured -->", "<!-- /measured -->")


def mails(book: Book, triggers: Sequence[str], taste: int | None, count: int, seed: int) -> list[ExampleRow]:
    """``count`` examples; ``taste`` None: every clause alike."""
    rng, made = random.Random(f"{triggers}/{taste}/{seed}"), []
    for number in range(count):
        trigger, tone = rng.choice(list(triggers)), rng.choice(TONES)
        slots = frozenset(book.chapter(trigger).facts) | ALWAYS
        said = {}
        for move in MOVES:
            open_to = book.clauses(trigger, move, tone, slots, "general", ())
            liked = [clause for clause in open_to if zlib.crc32(clause.id.encode()) % THIRDS == taste]
            said[move] = rng.choice(liked if liked and rng.random() < TASTE else open_to)
        text = f"Subject: {said['subject'].text}\nPreheader: {said['preheader'].text}"
        prompt = render(Prompt(trigger, tone, "en", "", "general", (), tuple(sorted(slots - ALWAYS))))
        made.append(ExampleRow(f"{seed}-{number}", f"c{taste}", trigger, tone, prompt, text, 1.0, 0.0, float(number)))
    return made


class AblationBench:
    """The base, and results by arm."""

    def __init__(self, home: Path, threads: int) -> None:
        path = writer_base.locate()
        home = home / writer_base.fingerprint(path, house=None)[:12]  # arms on another base don't mix with these
        folder = home / "base"
        if not (folder / "config.json").exists():
            writer_base.export_hf(writer_base.load(path, house=None), folder)  # the seed adapter stands in the house adapter's place
        self.model = load_base(folder, threads)
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.eos: int = json.loads((folder / "config.json").read_text())["eos_token_id"]
        self.home, self.book = home, Book.load()

    def arm(self, name: str, run: Callable[[], Any]) -> Any:
        """The result of one arm, from an earlier run where there is one."""
        file = self.home / f"{name}.json"
        if not file.exists():
            fresh = file.with_suffix(".new")
            fresh.write_text(json.dumps(run()))
            fresh.replace(file)
            Console(stderr=True).print(f"{name}: {file.read_text()}")
        return json.loads(file.read_text())

    def fit(self, learn: Sequence[ExampleRow], recipe: Recipe, serving: bytes | None) -> bytes:
        """The last step's adapter: an ablation compares equal compute, not equal luck in stopping."""
        found: Fitted = fit(self.model, self.tokenizer, self.eos, learn, learn[:2], replace(recipe, evaluate_every=recipe.steps), serving)
        return bytes(save_tensors({name: tensor.contiguous() for name, tensor in found.tensors.items()}))

    def adapter(self, name: str, make: Callable[[], bytes]) -> bytes:
        """An adapter that later arms begin with."""
        file = self.home / f"{name}.safetensors"
        if not file.exists():
            file.write_bytes(make())
        return file.read_bytes()

    def loss(self, adapter: bytes | None, rows: Sequence[ExampleRow], epsilon: float = 0.0) -> float:
        """Mean nats a token."""
        model = with_adapter(self.model, RECIPE.rank, adapter)
        try:
            found = losses(model, code(self.tokenizer, rows, self.eos), 4, epsilon)
        finally:
            model.unload()
        return float(np.mean(found))


def perplexities(bench: AblationBench) -> dict[str, dict[str, float]]:
    """For each cluster the held-out perplexity of base, seed and its own adapter."""
    triggers = STAGES
    seed = bench.adapter(
        "seed",
        lambda: bench.fit([r for t in range(CLUSTERS) for r in mails(bench.book, triggers, t, LEARN, 0)], replace(RECIPE, steps=16), None),
    )
    found = {}
    for cluster in range(CLUSTERS):
        check = mails(bench.book, triggers, cluster, HELD_OUT, 1)

        def own(cluster: int = cluster, check: list[ExampleRow] = check) -> dict[str, float]:
            adapter = bench.fit(mails(bench.book, triggers, cluster, LEARN, 2), RECIPE, seed)
            arms = {"base": None, "seed": seed, "cluster": adapter}
            return {name: math.exp(bench.loss(one, check)) for name, one in arms.items()}

        found[f"c{cluster}"] = bench.arm(f"perplexity c{cluster}", own)
    return found


def perturbed(bench: AblationBench) -> dict[str, list[dict[str, float]]]:
    """Clean and perturbed held-out loss at equal compute: FGM takes two passes a step, so half the steps."""
    recipes = {
        "clean": RECIPE,
        "FGM": replace(RECIPE, steps=RECIPE.steps // 2, epsilon=EPSILON),
    }
    check = mails(bench.book, STAGES, 0, HELD_OUT, 1)
    found: dict[str, list[dict[str, float]]] = {name: [] for name in recipes}
    for number in range(SEEDS):
        for name, recipe in recipes.items():

            def arm(recipe: Recipe = recipe, number: int = number) -> dict[str, float]:
                adapter = bench.fit(mails(bench.book, STAGES, 0, LEARN, 10 + number), replace(recipe, seed=number), None)
                return {"clean": bench.loss(adapter, check), "perturbed": bench.loss(adapter, check, EPSILON)}

            found[name].append(bench.arm(f"{name} seed {number}", arm))
    return found


def forgetting(bench: AblationBench) -> dict[str, dict[str, float]]:
    """Loss on the first refit's kind of mail after five refits, each on another kind; with replay and KL, and with neither."""
    ways = {"neither": (0.0, 0.0), "replay 20 % and KL 0.1": (0.2, 0.1)}
    check = mails(bench.book, STAGES[:1], 0, HELD_OUT, 1)
    last = mails(bench.book, STAGES[-1:], 0, HELD_OUT, 1)
    learn = [mails(bench.book, [trigger], 0, LEARN, 20 + n) for n, trigger in enumerate(STAGES)]
    first = bench.adapter("first", lambda: bench.fit(learn[0], replace(RECIPE, steps=6), None))
    found = {}
    for name, (share, kl) in ways.items():

        def arm(share: float = share, kl: float = kl) -> dict[str, float]:
            adapter = first
            for number in range(1, len(STAGES)):
                older = [row for part in learn[:number] for row in part]
                again = random.Random(number).sample(older, round(share / (1 - share) * LEARN))
                adapter = bench.fit([*learn[number], *again], replace(RECIPE, steps=6, kl=kl, seed=number), adapter)
            return {"then": bench.loss(first, check), "now": bench.loss(adapter, check), "newest": bench.loss(adapter, last)}

        found[name] = bench.arm(f"forgetting: {name}", arm)
    return found


def told_perplexities(found: dict[str, dict[str, float]]) -> list[str]:
    """Lines of Markdown."""
    return [
        "Held-out perplexity a token, for each cluster's taste:",
        "",
        "| cluster | base | seed adapter (all clusters) | its own adapter |",
        "|---|---|---|---|",
        *(f"| {name} | {one['base']:.2f} | {one['seed']:.2f} | {one['cluster']:.2f} |" for name, one in found.items()),
    ]


def told_perturbed(found: dict[str, list[dict[str, float]]]) -> list[str]:
    """Lines of Markdown."""
    return [
        f"Adversarial against clean at equal compute, {SEEDS} seeds (mean and range; nats a token; perturbed: one FGM step of {EPSILON} "
        "of the embeddings' norm against the model):",
        "",
        "| fit | held-out loss | perturbed loss |",
        "|---|---|---|",
        *(f"| {name} | {_spread(arms, 'clean')} | {_spread(arms, 'perturbed')} |" for name, arms in found.items()),
    ]


def told_forgetting(found: dict[str, dict[str, float]]) -> list[str]:
    """Lines of Markdown."""
    return [
        "Forgetting: the first kind of mail, right after its refit and after four more on other kinds (nats a token):",
        "",
        "| refits with | loss then | loss after five | forgotten | loss on the newest kind |",
        "|---|---|---|---|---|",
        *(
            f"| {name} | {one['then']:.3f} | {one['now']:.3f} | {one['now'] - one['then']:+.3f} | {one['newest']:.3f} |"
            for name, one in found.items()
        ),
    ]


def _spread(arms: Sequence[dict[str, float]], name: str) -> str:
    found = [one[name] for one in arms]
    return f"{np.mean(found):.3f} ({min(found):.3f} to {max(found):.3f})"


PARTS: dict[str, Callable[[AblationBench], list[str]]] = {
    "perplexity": lambda bench: told_perplexities(perplexities(bench)),
    "adversarial": lambda bench: told_perturbed(perturbed(bench)),
    "forgetting": lambda bench: told_forgetting(forgetting(bench)),
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m training.research.ablation", description=__doc__)
    parser.add_argument("--home", type=Path, default=Path(".mailtide/ablation"), help="arms already done are taken from here")
    parser.add_argument("--docs", type=Path, default=Path("docs/training.md"), help="the page whose tables are written anew")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", choices=PARTS, action="append", help="measure this part and leave the page alone")
    chosen = parser.parse_args()
    chosen.home.mkdir(parents=True, exist_ok=True)
    bench = AblationBench(chosen.home, chosen.threads)
    made = {name: PARTS[name](bench) for name in chosen.only or PARTS}
    if chosen.only:
        Console(stderr=True).print("\n".join(line for part in made.values() for line in part))
        return
    page = chosen.docs.read_text()
    before, after = page.partition(MARKS[0])[0], page.partition(MARKS[1])[2]
    text = "\n\n".join("\n".join(part) for part in made.values())
    chosen.docs.write_text(f"{before}{MARKS[0]}\n{text}\n{MARKS[1]}{after}")


if __name__ == "__main__":
    main()
