"""``python -m training.study``: does it learn? A closed loop without Kafka, against readers whose taste is known.

Each seed draws a hidden taste for each cluster. Mails go out by four policies
to readers of that taste, round by round; what the readers do is all that a
policy learns from:

- *fixed*: tone by lot, clauses by the base model, no learning;
- *plain bandit*: linear Thompson sampling over tones and clauses, no language model;
- *adapter*: the tone bandit, and a LoRA refitted after each round on what was sent;
- *blend*: the same, and the odds that feedback gives each clause and its style lean the walk.

Every policy is exact: the model is run over the whole tree of a prompt's mails,
so a round's mails are drawn from what the writer would do, not from a pool.
Mails are short (``--moves``), so that two cores do it in minutes. Writes
``docs/learning.md`` and ``docs/learning.png``.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import os
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from models.odds import ClauseOdds, Styles
from models.phrasebook.book import TONES, Book
from models.prompt import Prompt, narrow, render
from models.reader import Taste, chances, met, portrait, respond, taste_of
from models.slots import ALWAYS
from models.style import styles_of
from models.tone import SUCCESS, ToneBandit
from models.writer import base as writer_base
from models.writer.automaton import Words
from training.policy import Course, Kind, School, Tensors, Tree, walk_again
from training.reward import WORTH, reward, weights
from training.study_report import write

ABOUT = "coupon users, a small basket"  # all clusters are described alike: only feedback can tell their tastes apart
CONTEXT: tuple[tuple[str, ...], str, tuple[str, ...]] = (("category", "product_1"), "coffee_tea", ("regular",))  # slots, goods, situation
LEARNED = ("welcome", "replenishment", "win_back")
HELD_OUT = ("recommendation", "cart_abandoned", "vip_thanks")
EXPLORE = 0.1  # as settings.writer.explore
THINK_AGAIN = 100  # sends between two updates of a bandit
SHRINK = 20.0  # sends' worth of the mean that a mail's own mean reward begins with
POLICIES = ("adapter", "blend", "plain bandit", "fixed")


@dataclass(frozen=True, slots=True)
class Mail:
    """One mail that a prompt's tree holds. ``like``: its portrait."""

    clauses: dict[str, str]
    like: Taste


@dataclass(slots=True)
class Ground:
    """All mails of one trigger and tone, and the tree of their tokens."""

    trigger: str
    tone: str
    prompt: str
    kind: Kind
    mails: list[Mail] = field(default_factory=list)
    tree: Tree = field(default_factory=Tree)

    @property
    def name(self) -> str:
        """Context of the regression."""
        return f"{self.trigger}/{self.tone}"


@dataclass(slots=True)
class World:
    """The book, the model and the grounds: what all runs share."""

    book: Book
    words: Words
    school: School
    course: Course
    grounds: dict[tuple[str, str], Ground]
    styles: Styles
    base: dict[tuple[str, str], NDArray[np.float64]] = field(default_factory=dict)

    def chances(
        self, keys: Sequence[tuple[str, str]], tensors: Tensors | None, odds: Mapping[str, float], explore: float
    ) -> dict[tuple[str, str], NDArray[np.float64]]:
        """Probability of each mail of these grounds, as the writer's walk would choose it."""
        tables = self.school.logits([self.grounds[key].tree for key in keys], self.course, tensors)
        return {key: self._of(self.grounds[key], table, odds, explore) for key, table in zip(keys, tables, strict=True)}

    def _of(
        self, ground: Ground, table: Mapping[int, NDArray[np.float32]], odds: Mapping[str, float], explore: float
    ) -> NDArray[np.float64]:
        found = []
        for mail in ground.mails:
            walked = walk_again(
                self.words,
                self.book,
                ground.prompt,
                ground.kind,
                mail.clauses,
                logits=lambda ids: table[ground.tree.find(ids)],
                odds=odds,
                explore=explore,
                temperature=self.course.temperature,
            )
            found.append(float(np.prod([choice.propensity for choice in walked.choices])) if walked else 0.0)
        whole = np.array(found)
        return np.asarray(whole / whole.sum())  # propensities are rounded to a millionth


def shortened(book: Book, moves: Sequence[str]) -> Book:
    """The book with these moves alone."""
    return Book(
        msgspec.structs.replace(
            chapter,
            moves=tuple(move for move in chapter.moves if move in moves),
            clauses=tuple(clause for clause in chapter.clauses if clause.move in moves),
            template={move: name for move, name in chapter.template.items() if move in moves},
        )
        for chapter in book.chapters.values()
    )


def ground_of(words: Words, book: Book, trigger: str, tone: str) -> Ground:
    """Every mail that the book holds for one context."""
    slots, goods, situation = CONTEXT
    prompt = narrow(Prompt(trigger, tone, "en", ABOUT, goods, situation, slots), book)
    kind: Kind = (trigger, tone, prompt.slots, prompt.goods, prompt.situation)
    made = Ground(trigger, tone, render(prompt), kind)
    have = {*prompt.slots, *ALWAYS}
    every = {move: book.clauses(trigger, move, tone, have, prompt.goods, prompt.situation) for move in book.moves(trigger)}
    every = {move: clauses for move, clauses in every.items() if clauses}
    for chosen in itertools.product(*every.values()):
        clauses = {move: clause.id for move, clause in zip(every, chosen, strict=True)}
        walked = walk_again(words, book, made.prompt, kind, clauses)
        if walked is not None:
            made.tree.add(walked)
            made.mails.append(Mail(clauses, portrait(book, trigger, tone, walked.choices)))
    return made


def worth(mail: Taste, taste: Taste) -> float:
    """Expected reward of a mail."""
    c = chances(mail, taste)
    clicked = c.click * ((1 - c.order) * WORTH["clicked"] + c.order * WORTH["ordered"])
    bad = (1 - c.click) * (c.complain * WORTH["complained"] + (1 - c.complain) * c.object * WORTH["unsubscribed"])
    return c.open * (clicked + (1 - c.click) * WORTH["opened"] + bad)


@dataclass(slots=True)
class Sent:
    """What one policy sent in one run, send by send: whether in taste (all three), and the regret."""

    in_taste: list[bool] = field(default_factory=list)
    regret: list[float] = field(default_factory=list)
    held_out: list[float] = field(default_factory=list)  # before and after each round: share of held-out triggers' mails, see there
    served: list[float] = field(default_factory=list)  # the same moments: share of learned triggers' mails, without exploring


@dataclass(slots=True)
class Run:
    """One cluster of one seed under one policy."""

    world: World
    cluster: str
    seed: int
    policy: str
    rounds: int
    sends: int

    def play(self) -> Sent:
        """All rounds."""
        taste, sent = taste_of(self.cluster, self.seed), Sent()
        draw = np.random.default_rng(_number(f"{self.seed}/{self.cluster}/{self.policy}"))
        tones, odds = ToneBandit(), ClauseOdds(self.world.styles if self.policy == "blend" else None)
        tensors: Tensors | None = None
        told: dict[tuple[tuple[str, str], int], list[float]] = defaultdict(list)  # (ground, mail) -> rewards
        best = worth(taste, taste)
        self._look(sent, taste, tensors, odds, tones)
        for turn in range(self.rounds):
            picks = self._picks(tensors, odds, tones, draw, turn)
            for number in range(self.sends):
                key, place = next(picks)
                mail = self.world.grounds[key].mails[place]
                name = f"{self.cluster}/{self.policy}/{turn}/{number}"
                kinds = [one.kind for one in respond(mail.like, taste, self.seed, name)]
                value = reward(kinds)
                told[key, place].append(value)
                tones.learn(self.cluster, mail.like.tone, bool(SUCCESS & set(kinds)))
                odds.learn(self.world.grounds[key].name, mail.clauses.values(), value)
                sent.in_taste.append(met(mail.like, taste) == 3)
                sent.regret.append(best - worth(mail.like, taste))
            if self.policy in ("adapter", "blend"):
                tensors = self._refit(told, tones, tensors, turn)
                self._look(sent, taste, tensors, odds, tones)
        return sent

    def _look(self, sent: Sent, taste: Taste, tensors: Tensors | None, odds: ClauseOdds, tones: ToneBandit) -> None:
        """What would be served now without exploring: in the likeliest tone for learned triggers, in the right tone for held-out ones."""
        if self.policy not in ("adapter", "blend"):
            return
        known = tones.chances(self.cluster)
        keys = [(trigger, max(known, key=known.__getitem__)) for trigger in LEARNED] + [(trigger, taste.tone) for trigger in HELD_OUT]
        table = self.world.chances(keys, tensors, odds.odds() if self.policy == "blend" else {}, 0.0)
        shares = [share(self.world.grounds[key], table[key], taste) for key in keys]
        sent.served.append(float(np.mean(shares[: len(LEARNED)])))
        sent.held_out.append(float(np.mean(shares[len(LEARNED) :])))
        print(f"  {self.policy}: served {sent.served[-1]:.1%}, held-out {sent.held_out[-1]:.1%} in taste", flush=True)

    def _picks(
        self, tensors: Tensors | None, odds: ClauseOdds, tones: ToneBandit, draw: np.random.Generator, turn: int
    ) -> Iterator[tuple[tuple[str, str], int]]:
        """Grounds and mails, one for each send, for ever."""
        if self.policy == "plain bandit":
            yield from self._thompson(odds, draw)
        keys = [(trigger, tone) for trigger in LEARNED for tone in TONES]
        leaning = odds.odds() if self.policy == "blend" else {}
        table = self.world.base if tensors is None and not leaning else self.world.chances(keys, tensors, leaning, EXPLORE)
        for number in itertools.count():
            if number % THINK_AGAIN == 0:
                known = tones.chances(self.cluster) if self.policy != "fixed" else dict.fromkeys(TONES, 1 / len(TONES))
            tone = str(draw.choice(list(known), p=list(known.values())))
            key = (LEARNED[number % len(LEARNED)], tone)
            yield key, int(draw.choice(len(table[key]), p=table[key]))

    def _thompson(self, odds: ClauseOdds, draw: np.random.Generator) -> Iterator[tuple[tuple[str, str], int]]:
        """The best mail under a draw from the posterior, over all tones."""
        every = {trigger: [(trigger, tone) for tone in TONES] for trigger in LEARNED}
        places = {t: [(key, n) for key in keys for n in range(len(self.world.grounds[key].mails))] for t, keys in every.items()}
        columns = {
            trigger: np.array([odds.columns(self.world.grounds[k].name, self.world.grounds[k].mails[n].clauses.values()) for k, n in found])
            for trigger, found in places.items()
        }
        for number in itertools.count():
            if number % THINK_AGAIN == 0:
                effects = odds.draws(draw, THINK_AGAIN)
            trigger = LEARNED[number % len(LEARNED)]
            scores = effects[number % THINK_AGAIN][columns[trigger]].sum(1)
            yield places[trigger][int(scores.argmax())]

    def _refit(
        self, told: Mapping[tuple[tuple[str, str], int], list[float]], tones: ToneBandit, serving: Tensors | None, turn: int
    ) -> Tensors:
        """The adapter moved by one fit: mails weighted by how they did against others of their trigger and tone."""
        likely = {tone for tone, chance in tones.chances(self.cluster).items() if chance >= 0.2}
        keys = [(trigger, tone) for trigger in LEARNED for tone in TONES if tone in likely]
        rows: list[tuple[tuple[str, str], int, int, float]] = []
        for key in keys:
            own = [(place, values) for (where, place), values in told.items() if where == key]
            mean = sum(sum(values) for _, values in own) / max(sum(len(values) for _, values in own), 1)
            rows += [(key, place, len(values), (sum(values) - mean * len(values)) / (len(values) + SHRINK)) for place, values in own]
        trees = [self.world.grounds[key].tree for key in keys]
        for tree in trees:
            tree.clear()
        for (key, place, count, _), weight in zip(rows, weights([row[3] for row in rows], [1.0] * len(rows)), strict=True):
            ground = self.world.grounds[key]
            walked = walk_again(self.world.words, self.world.book, ground.prompt, ground.kind, ground.mails[place].clauses)
            if walked is not None:
                ground.tree.add(walked, weight * count)
        return self.world.school.fit(trees, replace(self.world.course, seed=turn), serving)


def share(ground: Ground, table: NDArray[np.float64], taste: Taste) -> float:
    """Probability that a mail is all that the reader likes."""
    return float(sum(p for mail, p in zip(ground.mails, table.tolist(), strict=True) if met(mail.like, taste) == 3))


def _number(name: str) -> int:
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "big")


def open_world(home: Path, moves: Sequence[str], course: Course) -> World:
    """The base model and the grounds of all triggers."""
    path = writer_base.locate("")
    folder = home / f"base-{writer_base.fingerprint(path)[:12]}"
    if not (folder / "config.json").exists():
        writer_base.export_hf(writer_base.load(path), folder)
    book = shortened(Book.load(), moves)
    eos = json.loads((folder / "config.json").read_text())["eos_token_id"]
    words = Words(Tokenizer.from_file(str(folder / "tokenizer.json")), eos)
    grounds = {(trigger, tone): ground_of(words, book, trigger, tone) for trigger in (*LEARNED, *HELD_OUT) for tone in TONES}
    world = World(book, words, School(folder, max(1, (os.cpu_count() or 2) // 2)), course, grounds, styles_of(book))
    world.base = world.chances([key for key in grounds if key[0] in LEARNED], None, {}, EXPLORE)
    return world


def main(arguments: Sequence[str] | None = None) -> int:
    usual = Course(first=24, steps=10, learning_rate=1e-2)  # a few steps over few layers: minutes, not hours
    parser = argparse.ArgumentParser(prog="python -m training.study", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--home", type=Path, default=Path(".mailtide/study"), help="keeps each run: one that is there isn't made again")
    parser.add_argument("--docs", type=Path, default=Path("docs"))
    parser.add_argument("--seeds", default="0,1,2", help="several processes may share them out, and one then writes the page of all")
    parser.add_argument("--clusters", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--sends", type=int, default=2000, help="mails of a cluster in each round")
    parser.add_argument("--moves", default="subject,reason", help="of each mail: more cost minutes")
    parser.add_argument("--steps", type=int, default=usual.steps, help="of each refit")
    parser.add_argument("--first", type=int, default=usual.first, help="lowest layer that is fitted")
    chosen = parser.parse_args(arguments)
    chosen.home.mkdir(parents=True, exist_ok=True)
    size = {name: getattr(chosen, name) for name in ("rounds", "sends", "moves", "steps", "first")}
    mark = hashlib.blake2b(json.dumps(size).encode(), digest_size=4).hexdigest()
    course, world = replace(usual, steps=chosen.steps, first=chosen.first), None
    seeds = [int(seed) for seed in chosen.seeds.split(",")]
    for seed, number, policy in itertools.product(seeds, range(chosen.clusters), POLICIES):
        file = chosen.home / f"{mark}-{seed}-c{number}-{policy.replace(' ', '-')}.json"
        if file.exists():
            continue
        world = world or open_world(chosen.home, chosen.moves.split(","), course)
        started = time.monotonic()
        sent = Run(world, f"c{number}", seed, policy, chosen.rounds, chosen.sends).play()
        told = asdict(sent) | {"seconds": time.monotonic() - started, "taste": msgspec.to_builtins(taste_of(f"c{number}", seed))}
        file.write_text(json.dumps(told))
        last = sent.in_taste[-chosen.sends :]
        print(
            f"seed {seed} c{number} {policy}: {sum(last) / len(last):.1%} of the last round in taste, {told['seconds']:.0f} s", flush=True
        )
    write(chosen.docs, chosen.home, mark, size | {"seeds": chosen.seeds, "clusters": chosen.clusters, "runs": len(seeds) * chosen.clusters})
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
