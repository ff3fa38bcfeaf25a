"""``python -m training.research.study``: does it learn? A closed loop without Kafka, against readers whose taste is known.

Each seed draws a hidden taste for each cluster. Mails go out by five policies
to readers of that taste, round by round; what the readers do is all that a
policy learns from:

- *fixed*: tone by lot, clauses by the base model, no learning;
- *plain bandit*: linear Thompson sampling over tones and clauses, no language model;
- *adapter*: the tone bandit, and a LoRA refitted on what was sent, early and after each round;
- *blend*: the same, and the odds that feedback gives each clause and its style lean the walk;
- *odds alone*: the blend without its refits, to tell the two apart.

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
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from models.learning.clause_odds import ClauseOdds, Styles
from models.learning.simulated_reader import Taste, chances, met, respond, taste_of
from models.learning.tone import SUCCESS, ToneBandit
from models.phrasebook.book import TONES, Book
from models.phrasebook.style import styles_of
from models.writer import base as writer_base
from models.writer.automaton import Vocabulary
from schemas.config import TrainingSettings, WriterSettings
from training.feedback.reward import WORTH, reward, weights
from training.research.mail_space import MailSpace, mail_space_of, shortened
from training.research.policy import Course, School, Tensors
from training.research.study_report import write

LEARNED = ("welcome", "replenishment", "win_back")
HELD_OUT = ("recommendation", "cart_abandoned", "vip_thanks")
WRITER = WriterSettings()  # explores and draws as the writer does
FIRST_REFIT = 100  # sends; the service's comes after training.min_examples, 64
THINK_AGAIN = TrainingSettings().odds_examples  # sends between two updates of a bandit or of the odds
SHRINK = 20.0  # sends' worth of the mean that a mail's own mean reward begins with
POLICIES = ("adapter", "blend", "odds alone", "plain bandit", "fixed")
REFITTED, LEANING = ("adapter", "blend"), ("blend", "odds alone")

Key = tuple[str, str]  # trigger and tone
Logits = dict[Key, dict[int, NDArray[np.float32]]]
Pick = Callable[[int], tuple[Key, int]]  # ground and mail of the round's next send


@dataclass(slots=True)
class World:
    """The book, the model and the grounds: what all runs share."""

    school: School
    course: Course
    grounds: dict[Key, MailSpace]
    styles: Styles
    base: Logits = field(default_factory=dict)

    def logits(self, tensors: Tensors | None) -> Logits:
        """The model's, for all grounds."""
        tables = self.school.logits([ground.tree for ground in self.grounds.values()], self.course, tensors)
        return dict(zip(self.grounds, tables, strict=True))

    def chances(self, key: Key, logits: Logits, odds: Mapping[str, float], explore: float) -> NDArray[np.float64]:
        """Probability of each mail of a ground, as the writer's walk would choose it."""
        temperature = WRITER.untaught_temperature if logits is self.base else WRITER.temperature
        return self.grounds[key].chances(logits[key], odds, explore, temperature)


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
    sent: Sent = field(default_factory=Sent)
    tones: ToneBandit = field(default_factory=ToneBandit)
    told: dict[tuple[Key, int], list[float]] = field(default_factory=lambda: defaultdict(list))  # (ground, mail) -> rewards

    def play(self) -> Sent:
        """All rounds."""
        taste = taste_of(self.cluster, self.seed)
        draw = np.random.default_rng(_number(f"{self.seed}/{self.cluster}/{self.policy}"))
        odds = ClauseOdds(self.world.styles if self.policy in LEANING else None)
        best, logits, tensors = worth(taste, taste), self.world.base, None
        refits = {FIRST_REFIT, *range(self.sends, self.rounds * self.sends + 1, self.sends)}
        self._look(taste, logits, odds)
        for number in range(self.rounds * self.sends):
            turn, place_in_turn = divmod(number, self.sends)
            if number % THINK_AGAIN == 0:
                pick = self._thompson(odds, draw) if self.policy == "plain bandit" else self._lot(logits, odds, draw)
            key, place = pick(place_in_turn)
            mail = self.world.grounds[key].mails[place]
            kinds = [one.kind for one in respond(mail.like, taste, self.seed, f"{self.cluster}/{self.policy}/{turn}/{place_in_turn}")]
            value = reward(kinds)
            self.told[key, place].append(value)
            self.tones.learn(self.cluster, mail.like.tone, bool(SUCCESS & set(kinds)))
            odds.learn(self.world.grounds[key].name, mail.clauses, value)
            self.sent.in_taste.append(met(mail.like, taste) == 3)
            self.sent.regret.append(best - worth(mail.like, taste))
            if number + 1 in refits:
                if self.policy in REFITTED:
                    tensors = self._refit(tensors, number)
                    logits = self.world.logits(tensors)
                self._look(taste, logits, odds)
        return self.sent

    def _look(self, taste: Taste, logits: Logits, odds: ClauseOdds) -> None:
        """What would be served now without exploring: in the likeliest tone for learned triggers, in the right tone for held-out ones."""
        if self.policy not in REFITTED + LEANING:
            return
        known, leaning = self.tones.chances(self.cluster), self._leaning(odds)
        keys = [(trigger, max(known, key=known.__getitem__)) for trigger in LEARNED] + [(trigger, taste.tone) for trigger in HELD_OUT]
        shares = [share(self.world.grounds[key], self.world.chances(key, logits, leaning, 0.0), taste) for key in keys]
        self.sent.served.append(float(np.mean(shares[: len(LEARNED)])))
        self.sent.held_out.append(float(np.mean(shares[len(LEARNED) :])))
        print(f"  {self.policy}: served {self.sent.served[-1]:.1%}, held-out {self.sent.held_out[-1]:.1%} in taste", flush=True)

    def _leaning(self, odds: ClauseOdds) -> dict[str, float]:
        return odds.odds() if self.policy in LEANING else {}

    def _lot(self, logits: Logits, odds: ClauseOdds, draw: np.random.Generator) -> Pick:
        """By what is known now: a tone by its chance, a mail as the writer's walk draws it."""
        known = self.tones.chances(self.cluster) if self.policy != "fixed" else dict.fromkeys(TONES, 1 / len(TONES))
        leaning = self._leaning(odds)
        keys = [(trigger, tone) for trigger in LEARNED for tone in TONES]
        table = {key: self.world.chances(key, logits, leaning, WRITER.explore) for key in keys}

        def pick(number: int) -> tuple[Key, int]:
            tone = str(draw.choice(list(known), p=list(known.values())))
            key = (LEARNED[number % len(LEARNED)], tone)
            return key, int(draw.choice(len(table[key]), p=table[key]))

        return pick

    def _thompson(self, odds: ClauseOdds, draw: np.random.Generator) -> Pick:
        """The best mail under a draw from the posterior, over all tones."""
        columns: dict[str, tuple[list[tuple[Key, int]], NDArray[np.int64]]] = {}
        for trigger in LEARNED:
            places = [((trigger, tone), n) for tone in TONES for n in range(len(self.world.grounds[trigger, tone].mails))]
            grounds = [(self.world.grounds[key], n) for key, n in places]
            columns[trigger] = places, np.array([odds.columns(ground.name, ground.mails[n].clauses) for ground, n in grounds])
        effects = odds.draws(draw, THINK_AGAIN)

        def pick(number: int) -> tuple[Key, int]:
            places, theirs = columns[LEARNED[number % len(LEARNED)]]
            return places[int(effects[number % THINK_AGAIN][theirs].sum(1).argmax())]

        return pick

    def _refit(self, serving: Tensors | None, number: int) -> Tensors:
        """The adapter moved by one fit: mails weighted by how they did against others of their trigger and tone."""
        likely = {tone for tone, chance in self.tones.chances(self.cluster).items() if chance >= 0.2}
        keys = [(trigger, tone) for trigger in LEARNED for tone in TONES if tone in likely]
        rows: list[tuple[Key, int, int, float]] = []
        for key in keys:
            own = [(place, values) for (where, place), values in self.told.items() if where == key]
            mean = sum(sum(values) for _, values in own) / max(sum(len(values) for _, values in own), 1)
            rows += [(key, place, len(values), (sum(values) - mean * len(values)) / (len(values) + SHRINK)) for place, values in own]
        trees = [self.world.grounds[key].tree for key in keys]
        for tree in trees:
            tree.clear()
        for (key, place, count, _), weight in zip(rows, weights([row[3] for row in rows], [1.0] * len(rows)), strict=True):
            ground = self.world.grounds[key]
            ground.tree.add(ground.mails[place].walked, weight * count)
        return self.world.school.fit(trees, replace(self.world.course, seed=number), serving)


def share(ground: MailSpace, table: NDArray[np.float64], taste: Taste) -> float:
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
    words = Vocabulary(Tokenizer.from_file(str(folder / "tokenizer.json")), eos)
    grounds = {(trigger, tone): mail_space_of(words, book, trigger, tone) for trigger in (*LEARNED, *HELD_OUT) for tone in TONES}
    world = World(School(folder, max(1, (os.cpu_count() or 2) // 2)), course, grounds, styles_of(book))
    world.base = world.logits(None)
    return world


def main(arguments: Sequence[str] | None = None) -> int:
    usual = Course(first=24, steps=10, learning_rate=1e-2)  # a few steps over few layers: minutes, not hours
    parser = argparse.ArgumentParser(prog="python -m training.research.study", description=(__doc__ or "").partition("\n")[0])
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
