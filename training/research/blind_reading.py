"""Is the writer worth reading? Mails over goods that the house adapter never saw, to be read one by one, and blind pairs to choose between.

python -m training.research.blind_reading mails --n 60 --seed 7          # guided mails with their facts filled in
python -m training.research.blind_reading pairs --n 40 --seed 3 --key key.json   # model and uniform random choice, side by side, shuffled
python -m training.research.blind_reading tally --key key.json --chosen "A B = …"  # who won, how often a clause for the very case
python -m training.research.blind_reading free --n 8 --best-of 8 [--base FOLDER]   # free words, the best of several
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from models.mail.guard import check, passes
from models.mail.slots import ALWAYS, EXAMPLES, fill
from models.phrasebook.book import GOODS, Book, Clause
from models.phrasebook.choice import unsaid
from models.writer import Engine, Free, Guided, Model, Request, Walk, Written, locate, prepare
from models.writer.automaton import Vocabulary
from models.writer.base import HOUSE
from models.writer.prompt import render
from schemas.config import WriterSettings
from training.research.scenes import UNSEEN, Scene, scenes

TEMPERATURE = WriterSettings().untaught_temperature  # no adapter speaks here


def guided(words: Vocabulary, book: Book, scene: Scene, seed: int, explore: float = 0.0) -> Guided:
    """A walk for the scene; ``explore`` 1 draws every clause uniformly."""
    p = scene.prompt
    return Guided(words, book, p.trigger, p.tone, p.slots, p.goods, p.situation, seed=seed, temperature=TEMPERATURE, explore=explore)


def by_model(engine: Engine, asked: Sequence[tuple[Scene, Callable[[], Walk]]]) -> list[Written]:
    """One mail for each scene, written together."""
    words = engine.model.words
    futures = [engine.submit(Request(words.encode(render(scene.prompt)), walk)) for scene, walk in asked]
    return [future.result() for future in futures]


def by_chance(words: Vocabulary, book: Book, scene: Scene, seed: int) -> Written:
    """The same book under a uniform choice among the clauses that fit; no model is asked."""
    walk = guided(words, book, scene, seed, explore=1.0)
    walk.start()
    while not walk.finished:
        walk.take(walk.wants, np.zeros(len(walk.wants), np.float32))
    return walk.written()


def by_teacher(words: Vocabulary, book: Book, scene: Scene, seed: int) -> Written:
    """What the house adapter is taught to choose (``training.research.house``), from its teacher."""
    from training.research.house import Taught  # needs torch

    p = scene.prompt
    walk = Taught(words, book, p.trigger, p.tone, p.slots, p.goods, p.situation, seed=seed, explore=0.0)
    walk.straying = 0.0
    walk.start()
    while not walk.finished:
        walk.take(walk.wants, np.zeros(len(walk.wants), np.float32))
    return walk.written()


def filled(scene: Scene, text: str) -> str:
    """The mail as its reader sees it."""
    return fill(text, {name: EXAMPLES[name] for name in ALWAYS} | scene.facts)


def special(book: Book, scene: Scene, written: Written) -> tuple[int, int]:
    """Moves in which a clause for these goods or this situation was taken, and in which one could be."""
    p, said, taken, could = scene.prompt, list[Clause](), 0, 0
    for choice in written.choices:
        open_ = unsaid(book.clauses(p.trigger, choice.move, p.tone, frozenset(p.slots) | ALWAYS, p.goods, p.situation), said)
        clause = book.clause(choice.clause)
        if any(c.goods or c.situation for c in open_):
            could += 1
            taken += bool(clause.goods or clause.situation)
        said.append(clause)
    return taken, could


def heading(number: int, scene: Scene) -> str:
    p = scene.prompt
    return (
        f"── {number} · {p.trigger} · {p.tone} · {scene.facts.get('product_1', 'no product')} · {', '.join(p.situation) or 'no situation'}"
    )


def compose(book: Book, model: Model, chosen: Sequence[Scene], by: str) -> list[Written]:
    """A guided mail for each scene, by the model, by the teacher or by chance."""
    if by != "model":
        walk = by_teacher if by == "teacher" else by_chance
        return [walk(model.words, book, scene, number) for number, scene in enumerate(chosen)]
    engine = Engine(model, rows=8)
    try:
        return by_model(engine, [(s, partial(guided, model.words, book, s, i)) for i, s in enumerate(chosen)])
    finally:
        engine.close()


def mails(book: Book, model: Model, n: int, seed: int, by: str) -> None:
    """Print ``n`` guided mails over unseen goods."""
    chosen = list(itertools.islice(scenes(book, seed, UNSEEN), n))
    show(chosen, compose(book, model, chosen, by))


def show(chosen: Sequence[Scene], made: Sequence[Written]) -> None:
    """Each mail under its heading."""
    for number, (scene, written) in enumerate(zip(chosen, made, strict=True), 1):
        print(f"{heading(number, scene)}\n{filled(scene, written.text)}\n")


def pairs(book: Book, model: Model, n: int, seed: int, key: Path, by: str) -> None:
    """Print ``n`` pairs of ``by`` and chance, in an order that only the key file tells."""
    chosen = list(itertools.islice(scenes(book, seed, UNSEEN), n))
    written = compose(book, model, chosen, by)
    order = random.SystemRandom()
    entries = []
    for number, (scene, ours) in enumerate(zip(chosen, written, strict=True), 1):
        chance = by_chance(model.words, book, scene, number)
        model_first = order.random() < 0.5
        entries.append(
            {"model": "A" if model_first else "B", "special": special(book, scene, ours), "chance": special(book, scene, chance)}
        )
        first, second = (ours, chance) if model_first else (chance, ours)
        print(f"{heading(number, scene)}\nA  {filled(scene, first.text)}\n\nB  {filled(scene, second.text)}\n")
    key.write_text(json.dumps(entries))


def tally(key: Path, verdicts: Sequence[str]) -> None:
    """Print who won. ``verdicts``: A, B or = for each pair."""
    entries = json.loads(key.read_text())
    if len(entries) != len(verdicts):
        raise SystemExit(f"{len(verdicts)} verdicts for {len(entries)} pairs: give one of A, B, = for each")
    won = Counter("even" if v == "=" else "model" if v == e["model"] else "chance" for e, v in zip(entries, verdicts, strict=True))
    print(f"model better {won['model']}, random better {won['chance']}, even {won['even']}")
    for name, label in (("special", "model"), ("chance", "random")):
        taken, could = (sum(e[name][i] for e in entries) for i in (0, 1))
        print(f"{label}: a clause for these goods or this situation in {taken} of {could} moves that had one ({taken / could:.0%})")


def free(book: Book, model: Model, n: int, seed: int, best_of: int) -> None:
    """Print ``n`` mails of free words, each the best of several by guard and likelihood."""
    chosen = list(itertools.islice(scenes(book, seed, GOODS), n))
    engine = Engine(model, rows=8)
    try:
        for number, scene in enumerate(chosen, 1):
            slots = frozenset(scene.prompt.slots) | ALWAYS
            asked = [(scene, partial(Free, model.words, slots, seed=i)) for i in range(best_of)]
            judged = [(w, check(w.text, slots, scene.prompt.trigger)) for w in by_model(engine, asked)]
            best, verdicts = max(judged, key=lambda pair: (passes(pair[1]), pair[0].score))
            refused = [f"{rule}: {verdict}" for rule, verdict in verdicts.items() if verdict != "ok"]
            good = sum(passes(v) for _, v in judged)
            print(f"{heading(number, scene)}\nguard: {'; '.join(refused) or 'ok'}; {good} of {best_of} drafts pass\n{best.text}\n")
    finally:
        engine.close()


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description="Mails to read.")
    parser.add_argument("what", choices=("mails", "pairs", "tally", "free"))
    parser.add_argument("--n", type=int, default=60)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--key", type=Path, default=Path("key.json"))
    parser.add_argument("--chosen", default="", help="for tally: A, B or = for each pair, in order")
    parser.add_argument("--by", choices=("model", "teacher", "chance"), default="model")
    parser.add_argument("--best-of", type=int, default=8)
    parser.add_argument("--base", default="", help="base model; empty: the default")
    parser.add_argument("--house", type=Path, default=HOUSE, help="house adapter to merge")
    parser.add_argument("--home", type=Path, default=Path("~/.mailtide").expanduser())
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    if given.what == "tally":
        tally(given.key, given.chosen.split())
        return
    house = None if given.base else given.house
    book, model = Book.load(), Model(prepare(locate(given.base), given.home / "writer", "int8", house=house), given.threads)
    if given.what == "mails":
        mails(book, model, given.n, given.seed, given.by)
    elif given.what == "pairs":
        pairs(book, model, given.n, given.seed, given.key, given.by)
    else:
        free(book, model, given.n, given.seed, given.best_of)


if __name__ == "__main__":
    main()
