"""All mails of one trigger and tone, and the chance of each under the writer's walk: the study's ground truth.

``Guided`` chooses step by step; here a ground's choices are arrays, computed
once, so that new odds or an adapter's logits give the chances of all its mails
in a millisecond. A test holds the two against each other.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import msgspec
import numpy as np
from numpy.typing import NDArray

from models.learning.simulated_reader import Taste, portrait
from models.mail.slots import ALWAYS
from models.phrasebook.book import Book
from models.phrasebook.choice import worth
from models.writer.automaton import Vocabulary
from models.writer.prompt import Prompt, narrow, render
from training.research.policy import Kind, Tree, Walked, walk_again

ABOUT = "coupon users, a small basket"  # all clusters are described alike: only feedback can tell their tastes apart
CONTEXT: tuple[tuple[str, ...], str, tuple[str, ...]] = (("category", "product_1"), "coffee_tea", ("regular",))  # slots, goods, situation


@dataclass(frozen=True, slots=True)
class SpaceMail:
    """One mail that a prompt's tree holds. ``like``: its portrait."""

    walked: Walked
    like: Taste

    @property
    def clauses(self) -> tuple[str, ...]:
        """Ids, in the order said."""
        return tuple(choice.clause for choice in self.walked.choices)


@dataclass(frozen=True, slots=True, eq=False)
class MailSpace:
    """All mails of one trigger and tone, the tree of their tokens, and their choices as arrays.

    An *option* is one way on from a branch of the tree, a *score* stands for a
    clause after what was said before it.
    """

    trigger: str
    tone: str
    prompt: str
    kind: Kind
    mails: tuple[SpaceMail, ...]
    tree: Tree
    starts: NDArray[np.int64]  # each branch's first option
    taken: NDArray[np.int64]  # options that mails took, mail by mail
    step: NDArray[np.int64]  # the same, mail and move: mail * moves + move
    clause: tuple[str, ...]  # of each score
    worth: NDArray[np.float64]  # of each score: what the book's tags say
    lead: NDArray[np.int64]  # option and score, for each clause that an option leads to
    among: NDArray[np.float64]  # [mails,moves] clauses that could be said there

    @property
    def name(self) -> str:
        """Context of the regression."""
        return f"{self.trigger}/{self.tone}"

    def chances(
        self, logits: Mapping[int, NDArray[np.float32]], odds: Mapping[str, float], explore: float, temperature: float
    ) -> NDArray[np.float64]:
        """Probability of each mail as the writer's walk chooses it. ``logits``: of each branch's options, by node."""
        scores = np.exp(self.worth + np.array([odds.get(name, 0.0) for name in self.clause]))
        option, score = self.lead
        said = np.concatenate([logits[node] for node in self.tree.branches]).astype(np.float64) / temperature
        said += np.log(np.bincount(option, scores[score]) / np.bincount(option))
        widths = np.diff([*self.starts, len(said)])
        said -= np.repeat(np.logaddexp.reduceat(said, self.starts), widths)
        under_model = np.exp(np.bincount(self.step, said[self.taken], self.among.size)).reshape(self.among.shape)
        whole = (explore / self.among + (1 - explore) * under_model).prod(1)
        return np.asarray(whole / whole.sum())


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


def mail_space_of(words: Vocabulary, book: Book, trigger: str, tone: str) -> MailSpace:
    """Every mail that the book holds for one context."""
    slots, goods, situation = CONTEXT
    prompt = narrow(Prompt(trigger, tone, "en", ABOUT, goods, situation, slots), book)
    kind: Kind = (trigger, tone, prompt.slots, prompt.goods, prompt.situation)
    have = {*prompt.slots, *ALWAYS}
    every = {move: book.clauses(trigger, move, tone, have, prompt.goods, prompt.situation) for move in book.moves(trigger)}
    every = {move: clauses for move, clauses in every.items() if clauses}
    mails, tree, paths = [], Tree(), []
    for chosen in itertools.product(*every.values()):
        clauses = {move: clause.id for move, clause in zip(every, chosen, strict=True)}
        walked = walk_again(words, book, render(prompt), kind, clauses)
        if walked is not None:
            paths.append(tree.add(walked))
            mails.append(SpaceMail(walked, portrait(book, trigger, tone, walked.choices)))
    first = dict(zip(tree.branches, itertools.accumulate([0, *map(len, tree.branches.values())]), strict=False))
    score: dict[tuple[str, ...], int] = {}  # by the clauses said, the one it stands for last
    leads: dict[tuple[int, int], None] = {}
    taken, step = [], []
    for number, (mail, nodes) in enumerate(zip(mails, paths, strict=True)):
        said = mail.clauses
        for move in range(len(every)):
            score.setdefault(said[: move + 1], len(score))
        for branch, node in zip(mail.walked.branches, nodes, strict=True):
            taken.append(first[node] + branch.taken)
            step.append(number * len(every) + branch.move)
            leads[taken[-1], score[said[: branch.move + 1]]] = None
    worths = [worth(book.clause(said[-1]), [book.clause(name) for name in said[:-1]]) for said in score]
    among = [[sum(said[:-1] == mail.clauses[:move] for said in score) for move in range(len(every))] for mail in mails]
    return MailSpace(
        *(trigger, tone, render(prompt), kind, tuple(mails), tree),
        starts=np.array(list(first.values())),
        taken=np.array(taken),
        step=np.array(step),
        clause=tuple(said[-1] for said in score),
        worth=np.array(worths),
        lead=np.array(list(leads)).T,
        among=np.array(among, float),
    )
