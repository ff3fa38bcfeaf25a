"""The house adapter: it teaches the base model which clause of the phrase book fits which case.

The teacher knows the book's tags: a clause made for these goods or this
situation, or one that names the product, is worth more than one that fits
anybody. The student sees only words. It learns where it will have to choose:
the automaton is walked as the writer walks it, and at each branch of its trie
the student's probabilities among the tokens allowed there are drawn towards the
teacher's. Nothing is learned about stretches that are forced anyway, so a mail
gives some ten soft labels. The next token of the
whole vocabulary is asked for at a few places besides, so that the language stays whole.

    python -m training.research.house                   # writes models/writer/house.safetensors

It is merged into the base when the writer's graph is built.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from peft import LoraConfig, get_peft_model
from rich.progress import Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from safetensors.torch import save
from torch.nn import functional as F

from models.phrasebook.book import GOODS, Book, Clause
from models.phrasebook.choice import worth
from models.writer.automaton import Guided, Node, Vocabulary
from models.writer.base import HOUSE, Base, export_hf, fingerprint, load, locate
from models.writer.prompt import render
from training.refit.fit import LINEARS, load_base
from training.refit.loss import bf16_pays
from training.research.scenes import UNSEEN, Scene, scenes

TEMPERATURE = 0.8  # the writer's own: what is learned is the policy that it will follow
STRAYING = 0.2  # share of clauses drawn uniformly while the walk is taught, so that it knows more than its own paths
SPOKEN = 24  # places of each mail at which the whole vocabulary is asked for the next token
SPOKEN_WEIGHT = 0.3
JUDGED = 8  # scenes with unseen goods
WARM_UP = 6  # steps
ENOUGH = 0.15  # a judged divergence that fell by less since the last time ends the lesson


@dataclass(frozen=True, slots=True)
class HouseRecipe:
    """How to teach. Only the upper ``layers`` learn: half of the backward pass, and half of the file."""

    steps: int = 30
    batch: int = 4
    rank: int = 16
    layers: int = 12
    learning_rate: float = 2e-3
    judge_every: int = 15
    seed: int = 0
    threads: int = 1


@dataclass(frozen=True, slots=True)
class Lesson:
    """One mail in tokens, and for each branch: the position whose output decides, the tokens allowed, and the teacher's probabilities."""

    ids: list[int]
    places: list[int]
    allowed: list[NDArray[np.int64]]
    wanted: list[NDArray[np.float64]]


class Taught(Guided):
    """A walk whose clauses the teacher draws; it notes what it would have wanted at each branch."""

    straying = STRAYING

    def _draw(self) -> Clause | None:
        worths = np.array([worth(c, list(self.said.values())) for c in self._clauses])
        p = np.exp(worths - worths.max())
        p /= p.sum()
        self._mass = masses(self._node, p)
        p = (1 - self.straying) * p + self.straying / len(p)
        return self._clauses[int(self._random.choice(len(p), p=p))]

    def targets(self) -> NDArray[np.float64]:
        """The teacher's probabilities of what is wanted now, in its order."""
        found = np.array([self._mass[(*self._path, -1 if self._stops(i) else int(i))] for i in self.wants])
        return np.asarray(found / found.sum(), np.float64)


def masses(root: Node, p: NDArray[np.float64]) -> dict[tuple[int, ...], float]:
    """By path in a trie: the probability of all clauses that it leads to; -1 ends a clause where longer ones go on."""
    found: dict[tuple[int, ...], float] = {}

    def below(node: Node, path: tuple[int, ...]) -> float:
        total = float(p[node.clause]) if node.clause >= 0 else 0.0
        if node.clause >= 0 and node.children:
            found[(*path, -1)] = total
        total += sum(below(child, (*path, token)) for token, child in node.children.items())
        found[path] = total
        return total

    below(root, ())
    return found


def lesson(words: Vocabulary, book: Book, scene: Scene, seed: int) -> Lesson:
    """Walk one mail under the teacher."""
    prompt = scene.prompt
    walk = Taught(words, book, prompt.trigger, prompt.tone, prompt.slots, prompt.goods, prompt.situation, seed=seed, explore=0.0)
    ids = [*words.encode(render(prompt)), *walk.start()]
    places, allowed, wanted = [], [], []
    while not walk.finished:
        places.append(len(ids) - 1)
        allowed.append(walk.wants)
        wanted.append(walk.targets())
        ids += walk.take(walk.wants, np.zeros(len(walk.wants), np.float32))
    return Lesson(ids[: places[-1] + 1], places, allowed, wanted)


def loss(model: Any, output: torch.Tensor, lessons: Sequence[Lesson], spoken: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean divergence (nats a branch) of the student's choice from the teacher's; and nats a token of the mails at places drawn anew.

    Without the second, nothing holds what isn't compared at a branch: a first adapter chose well, and spoke in commas alone.
    """
    width = max(len(one.ids) for one in lessons)
    ids, mask = torch.zeros(len(lessons), width, dtype=torch.long), torch.zeros(len(lessons), width, dtype=torch.long)
    for row, one in enumerate(lessons):
        ids[row, : len(one.ids)] = torch.tensor(one.ids)
        mask[row, : len(one.ids)] = 1
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16_pays("cpu")):
        hidden = model(input_ids=ids, attention_mask=mask).last_hidden_state
    rows = torch.tensor([row for row, one in enumerate(lessons) for _ in one.places])
    at = hidden[rows, torch.tensor([place for one in lessons for place in one.places])].float()
    allowed = [tokens for one in lessons for tokens in one.allowed]
    wanted = [p for one in lessons for p in one.wanted]
    most = max(len(tokens) for tokens in allowed)
    choice = torch.tensor(np.stack([np.pad(tokens, (0, most - len(tokens))) for tokens in allowed]))
    open_ = torch.tensor(np.stack([np.arange(most) < len(tokens) for tokens in allowed]))
    target = torch.tensor(np.stack([np.pad(p, (0, most - len(p))) for p in wanted]), dtype=torch.float32)
    logits = torch.einsum("bd,bcd->bc", at, output[choice]) / TEMPERATURE
    logs = F.log_softmax(logits.masked_fill(~open_, -math.inf), dim=-1).masked_fill(~open_, 0.0)
    entropy = -(target * target.clamp(min=1e-12).log()).sum(-1)
    drawn = [(row, int(place)) for row, one in enumerate(lessons) for place in spoken.choice(len(one.ids) - 1, SPOKEN, replace=False)]
    before = hidden[torch.tensor([row for row, _ in drawn]), torch.tensor([place for _, place in drawn])].float()
    following = torch.tensor([lessons[row].ids[place + 1] for row, place in drawn])
    return (-(target * logs).sum(-1) - entropy).mean(), F.cross_entropy(before @ output.T, following)


def teach(
    base: Base, folder: Path, book: Book, recipe: HouseRecipe, keep: Callable[[dict[str, torch.Tensor]], None]
) -> list[tuple[int, float, float]]:
    """Judged divergences by step; ``keep`` gets each adapter, in PEFT's names, that is the best so far. ``folder``: the base for torch."""
    torch.manual_seed(recipe.seed)
    words = Vocabulary(base.tokenizer, base.shape.eos)
    last = base.shape.layers
    config = LoraConfig(
        r=recipe.rank, lora_alpha=2 * recipe.rank, target_modules=LINEARS, layers_to_transform=list(range(last - recipe.layers, last))
    )
    model = get_peft_model(load_base(folder, recipe.threads), config)
    body = model.get_base_model().model  # without the vocabulary's head
    output = model.get_output_embeddings().weight.detach()
    seen = sorted(set(GOODS) - set(UNSEEN))
    learned, judged = scenes(book, recipe.seed, seen), list(itertools.islice(scenes(book, recipe.seed + 1, UNSEEN), JUDGED))
    judging = [lesson(words, book, scene, number) for number, scene in enumerate(judged)]
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=recipe.learning_rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, recipe.steps))
    seeds = random.Random(recipe.seed)

    spoken = np.random.default_rng(recipe.seed)

    def judge() -> tuple[float, float]:
        same = np.random.default_rng(1)
        with torch.no_grad():
            pairs = [loss(body, output, judging[i : i + 4], same) for i in range(0, JUDGED, 4)]
        return sum(a.item() for a, _ in pairs) / len(pairs), sum(b.item() for _, b in pairs) / len(pairs)

    history = [(0, *judge())]
    columns = (*Progress.get_default_columns()[:2], TextColumn("{task.fields[told]}"), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns) as progress:
        task = progress.add_task("house adapter", total=recipe.steps, told=_told(history[0]))
        progress.console.print(_told(history[0]))
        for step in range(1, recipe.steps + 1):
            batch = [lesson(words, book, scene, seeds.getrandbits(62)) for scene in itertools.islice(learned, recipe.batch)]
            total = 0.0
            for half in (batch[: len(batch) // 2], batch[len(batch) // 2 :]):  # half at a time: half the memory
                chosen, said = loss(body, output, half, spoken)
                part = (chosen + SPOKEN_WEIGHT * said) * len(half) / len(batch)
                part.backward()
                total += part.item()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            if step % recipe.judge_every == 0 or step == recipe.steps:
                history.append((step, *judge()))
                progress.console.print(_told(history[-1]))
                if history[-1][1] <= min(value for _, value, _ in history):
                    keep(_state(model))
                if history[-1][1] > (1 - ENOUGH) * history[-2][1]:
                    break
            progress.update(task, advance=1, told=f"loss {total:.3f}")
    return history


def _told(judged: tuple[int, float, float]) -> str:
    return "step {:3d}: on unseen goods {:.3f} nats a branch from the teacher, {:.2f} nats a token".format(*judged)


def _rate(step: int, steps: int) -> float:
    if step < WARM_UP:
        return (step + 1) / WARM_UP
    return 0.5 * (1 + math.cos(math.pi * (step - WARM_UP) / max(1, steps - WARM_UP)))


def _state(model: Any) -> dict[str, torch.Tensor]:
    """PEFT's own names, in half precision: the file goes with the code."""
    return {
        name.replace(".default", ""): copy.deepcopy(tensor.detach()).half().contiguous()
        for name, tensor in model.state_dict().items()
        if "lora_" in name
    }


def write(tensors: dict[str, torch.Tensor], base_sha256: str, rank: int, out: Path) -> None:
    """The file as ``models.writer.base.merge`` reads it."""
    beside = out.with_suffix(".new")
    beside.write_bytes(save(tensors, {"base_sha256": base_sha256, "rank": str(rank), "alpha": str(2 * rank)}))
    beside.replace(out)


def main() -> None:
    """Teach and write; prints the divergence on unseen goods before and after."""
    standard = HouseRecipe()
    parser = argparse.ArgumentParser(description="Make the house adapter anew.")
    parser.add_argument("--base", default="", help="a .gguf file or a Hugging Face folder; empty: the default model")
    parser.add_argument("--out", type=Path, default=HOUSE)
    parser.add_argument("--work", type=Path, default=Path("~/.mailtide/house").expanduser(), help="where the base is unpacked for torch")
    for name in ("steps", "batch", "rank", "layers", "judge_every", "seed", "threads"):
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=getattr(standard, name))
    parser.add_argument("--learning-rate", type=float, default=standard.learning_rate)
    given = parser.parse_args()
    recipe = HouseRecipe(
        given.steps, given.batch, given.rank, given.layers, given.learning_rate, given.judge_every, seed=given.seed, threads=given.threads
    )
    path = locate(given.base)
    base, sha256 = load(path, house=None), fingerprint(path, None)
    folder = given.work / sha256[:12]
    if not (folder / "model.safetensors").exists():
        export_hf(base, folder)
    history = teach(base, folder, Book.load(), recipe, lambda tensors: write(tensors, sha256, recipe.rank, given.out))
    print("\n".join(_told(one) for one in history))
    print(f"{given.out}: {given.out.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
