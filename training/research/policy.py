"""The policy over clauses, fitted where it chooses: the loss stands on the branches of the phrase book's tries, not on every token.

A mail of a hundred tokens has some ten branches; the rest follows from them.
So the vocabulary's head is never needed. Mails of one prompt share their
beginnings: they are laid into one tree, each token once, and attention goes to
a token's ancestors (as in speculative decoding, arXiv 2305.09781). The layers
below the fitted ones are run once for each tree and kept.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from peft import LoraConfig, get_peft_model, set_peft_model_state_dict
from torch import nn
from torch.nn import functional as F
from transformers import AutoModelForCausalLM

from models.phrasebook.book import Book, Clause
from models.writer.automaton import Guided, Ids, Vocabulary
from schemas.mail import Choice

LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
WARM_UP = 2  # steps
Tensors = dict[str, torch.Tensor]
Kind = tuple[str, str, Collection[str], str, Collection[str]]  # trigger, tone, slots, goods, situation, as the writer's walk has them
Logits = Callable[[tuple[int, ...]], NDArray[np.float32]]


@dataclass(frozen=True, slots=True)
class Branch:
    """One choice: after ``ids[at]``, with ``move`` moves said, the model took ``options[taken]``."""

    at: int
    move: int
    options: tuple[int, ...]
    taken: int


@dataclass(frozen=True, slots=True)
class Walked:
    """A mail as the writer's walk took it: what was fed, where it chose, and each clause with its propensity."""

    ids: tuple[int, ...]
    branches: tuple[Branch, ...]
    choices: tuple[Choice, ...]


class _Again(Guided):
    """A walk that takes given clauses and notes its branches."""

    given: Mapping[str, str]
    lost = False
    taken = 0

    def _draw(self) -> Clause | None:
        found = next((c for c in self._clauses if c.id == self.given.get(self._move)), None)
        self.lost |= found is None
        return found

    def _towards(self, drawn: tuple[int, ...], ids: Ids) -> int:
        self.taken = super()._towards(drawn, ids)
        return self.taken


def walk_again(
    words: Vocabulary,
    book: Book,
    prompt: str,
    kind: Kind,
    clauses: Mapping[str, str],
    *,
    logits: Logits | None = None,
    odds: Mapping[str, float] | None = None,
    explore: float = 0.0,
    temperature: float = 0.8,
) -> Walked | None:
    """The walk of a mail whose clauses (ids by move) are known; None where the book no longer admits them.

    With ``logits`` (of the options after these ids) its propensities are those
    that a walk with this model, ``odds`` and ``explore`` takes it with.
    """
    if kind[0] not in book.chapters:
        return None
    walk = _Again(words, book, *kind, seed=0, explore=explore, odds=odds, temperature=temperature)
    walk.given = clauses
    ids, branches = [*words.encode(prompt), *walk.start()], []
    while not walk.finished and not walk.lost:
        options = walk.wants
        said = np.zeros(len(options), np.float32) if logits is None else logits(tuple(ids))
        at, move = len(ids) - 1, len(walk.written_choices)
        fed = walk.take(options, said)
        branches.append(Branch(at, move, tuple(options.tolist()), walk.taken))
        ids += fed
    if walk.lost:
        return None
    end = branches[-1].at + 1 if branches else len(ids)
    return Walked(tuple(ids[:end]), tuple(branches), walk.written_choices)


@dataclass(slots=True)
class Tree:
    """Walks of one prompt, each token once. ``branches``: node to its options; ``weights``: what each option counts for."""

    tokens: list[int] = field(default_factory=list)
    parent: list[int] = field(default_factory=list)
    depth: list[int] = field(default_factory=list)
    branches: dict[int, tuple[int, ...]] = field(default_factory=dict)
    weights: dict[int, NDArray[np.float32]] = field(default_factory=dict)
    _child: dict[tuple[int, int], int] = field(default_factory=dict)
    below: dict[int, torch.Tensor] = field(default_factory=dict)  # by fitted layer: what enters it

    def add(self, walked: Walked, weight: float = 0.0) -> list[int]:
        """Lay a walk into the tree; the nodes of its branches."""
        place, path = -1, []
        for token in walked.ids:
            path.append(place := self._node(place, token))
        nodes = [path[branch.at] for branch in walked.branches]
        for node, branch in zip(nodes, walked.branches, strict=True):
            if node not in self.branches:
                self.branches[node] = branch.options
                self.weights[node] = np.zeros(len(branch.options), np.float32)
            self.weights[node][branch.taken] += weight
        return nodes

    def find(self, ids: Sequence[int]) -> int:
        """The node where these ids end; KeyError where no walk went there."""
        place = -1
        for token in ids:
            place = self._child[place, token]
        return place

    def clear(self) -> None:
        """Forget the weights; what was run stays."""
        for weights in self.weights.values():
            weights[:] = 0.0

    def _node(self, place: int, token: int) -> int:
        found = self._child.get((place, token))
        if found is None:
            found = self._child[place, token] = len(self.tokens)
            self.tokens.append(token)
            self.parent.append(place)
            self.depth.append(self.depth[place] + 1 if place >= 0 else 0)
            self.below.clear()
        return found

    def mask(self) -> torch.Tensor:
        """f32[1,1,tokens,tokens]: nought towards a token's ancestors and itself, minus infinity elsewhere."""
        seen = np.zeros((len(self.tokens), len(self.tokens)), bool)
        for node, parent in enumerate(self.parent):
            if parent >= 0:
                seen[node] = seen[parent]
            seen[node, node] = True
        return torch.where(torch.from_numpy(seen), 0.0, -torch.inf)[None, None]


@dataclass(frozen=True, slots=True)
class Course:
    """How to fit. ``first``: the lowest layer that is fitted; ``kl`` in nats a branch, against the policy that served."""

    rank: int = 8
    first: int = 20
    learning_rate: float = 2e-3
    steps: int = 10
    kl: float = 0.02
    temperature: float = 0.8
    seed: int = 0


class School:
    """The frozen base, opened once. Not for several threads."""

    def __init__(self, folder: Path, threads: int) -> None:
        torch.set_num_threads(threads)
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        self.model.config.use_cache = False
        self.model.requires_grad_(False)

    def fit(self, trees: Sequence[Tree], course: Course, serving: Tensors | None = None) -> Tensors:
        """A new adapter in PEFT's names: the serving one's weights moved by ``course.steps``; layers below ``first`` do nothing.

        The loss is the weighted mean negative log-likelihood of what was taken,
        in nats a branch, and ``course.kl`` times the divergence from the
        policy that served.
        """
        torch.manual_seed(course.seed)
        weights = [_padded([tree.weights[node] for node in tree.branches]) for tree in trees]
        total, count = sum(float(one.sum()) for one in weights), sum(len(tree.branches) for tree in trees)
        with self._under(course, serving) as model:
            with torch.no_grad():
                served = [self._options(tree, course) for tree in trees]
            parameters = [p for p in model.parameters() if p.requires_grad]
            optimizer = torch.optim.AdamW(parameters, lr=course.learning_rate, weight_decay=0.0)
            schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, course.steps))
            for _ in range(course.steps):
                for tree, weight, then in zip(trees, weights, served, strict=True):
                    now = self._options(tree, course)
                    away = (then.exp() * (then - now)).masked_fill(then < _NEVER / 2, 0.0).sum()
                    loss = -(weight * now).sum() / total + course.kl * away / count
                    loss.backward()
                nn.utils.clip_grad_norm_(parameters, 1.0)
                optimizer.step()
                schedule.step()
                optimizer.zero_grad()
            return self._state(model, course)

    def logits(self, trees: Sequence[Tree], course: Course, tensors: Tensors | None = None) -> list[dict[int, NDArray[np.float32]]]:
        """For each tree, by node: log-probabilities of its options times the temperature, so that a walk may take them for logits."""
        found = []
        with self._under(course, tensors), torch.no_grad():
            for tree in trees:
                logs = self._options(tree, course).numpy() * course.temperature
                found.append({node: logs[n, : len(options)] for n, (node, options) in enumerate(tree.branches.items())})
        return found

    @contextmanager
    def _under(self, course: Course, tensors: Tensors | None) -> Iterator[Any]:
        """The base with an adapter on the fitted layers; a fresh one changes nothing."""
        layers = list(range(course.first, len(self.model.model.layers)))
        kind = LoraConfig(r=course.rank, lora_alpha=2 * course.rank, target_modules=LINEARS, layers_to_transform=layers)
        model = get_peft_model(self.model, kind)
        try:
            if tensors is not None:
                set_peft_model_state_dict(model, {name: one for name, one in tensors.items() if _layer(name) >= course.first})
            yield model
        finally:
            model.unload()

    def _options(self, tree: Tree, course: Course) -> torch.Tensor:
        """Log-probabilities f32[branches,most options] of what could be taken, at the walk's temperature."""
        inner = self.model.model
        if course.first not in tree.below:
            with torch.no_grad():
                tree.below[course.first] = self._through(tree, inner.embed_tokens(torch.tensor([tree.tokens])), 0, course.first)
        hidden = self._through(tree, tree.below[course.first], course.first, len(inner.layers))[0, list(tree.branches)]
        options = _padded([np.array(one) for one in tree.branches.values()]).long()
        absent = _padded([np.zeros(len(one), np.float32) for one in tree.branches.values()], 1.0).bool()
        logits = torch.einsum("bw,bow->bo", inner.norm(hidden), self.model.get_output_embeddings().weight[options])
        return F.log_softmax((logits / course.temperature).masked_fill(absent, _NEVER), dim=-1)

    def _through(self, tree: Tree, hidden: torch.Tensor, first: int, last: int) -> torch.Tensor:
        """Layers ``first`` to ``last`` over f32[1,tokens,width]."""
        inner, places = self.model.model, torch.tensor([tree.depth])
        turned = inner.rotary_emb(hidden, position_ids=places)
        mask = tree.mask()
        for layer in inner.layers[first:last]:
            hidden = layer(hidden, attention_mask=mask, position_embeddings=turned, position_ids=places)
        return hidden

    def _state(self, model: Any, course: Course) -> Tensors:
        """PEFT's own names; nought for the layers that weren't fitted, since the writer's graph has a place for each."""
        found = {name.replace(".default", ""): one.detach().clone() for name, one in model.state_dict().items() if "lora_" in name}
        for name, one in list(found.items()):
            if _layer(name) == course.first:
                for layer in range(course.first):
                    found[name.replace(f".layers.{course.first}.", f".layers.{layer}.")] = torch.zeros_like(one)
        return found


_NEVER = -1e9


def _padded(rows: Sequence[NDArray[Any]], value: float = 0.0) -> torch.Tensor:
    return nn.utils.rnn.pad_sequence([torch.from_numpy(np.asarray(row)) for row in rows], batch_first=True, padding_value=value)


def _layer(name: str) -> int:
    return int(name.split(".layers.")[1].split(".")[0])


def _rate(step: int, steps: int) -> float:
    if step < WARM_UP:
        return (step + 1) / WARM_UP
    return 0.5 * (1 + math.cos(math.pi * (step - WARM_UP) / max(1, steps - WARM_UP)))
