"""The study's arrays say what the writer's walk does."""

from __future__ import annotations

import numpy as np
import pytest

from models.phrasebook.book import Book
from models.writer.automaton import Vocabulary
from models.writer.base import load
from tests.tiny_model import tiny
from training.research.mail_space import MailSpace, mail_space_of, shortened
from training.research.policy import walk_again

BOOK = shortened(Book.load(), ("subject", "reason"))


@pytest.mark.parametrize(("trigger", "tone"), [("welcome", "warm"), ("win_back", "playful")])
@pytest.mark.parametrize("spread", [0.0, 3.0])  # of the odds; without them tags alone lean
def test_all_mails_are_there_with_the_chances_that_the_walk_gives_them(trigger: str, tone: str, spread: float) -> None:
    base, random = load(tiny(), house=None), np.random.default_rng(1)
    words = Vocabulary(base.tokenizer, base.shape.eos)
    ground = mail_space_of(words, BOOK, trigger, tone)
    logits = {node: random.normal(0, 2, len(options)).astype(np.float32) for node, options in ground.tree.branches.items()}
    odds = {clause.id: float(random.normal(0, spread)) for clause in BOOK.chapter(trigger).clauses} if spread else {}
    walked = np.array([propensity(words, ground, number, logits, odds) for number in range(len(ground.mails))])
    assert walked.sum() == pytest.approx(1.0, abs=1e-4)
    assert ground.chances(logits, odds, 0.1, 0.8) == pytest.approx(walked, abs=5e-6)
    assert ground.chances(logits, odds, 0.0, 0.8) != pytest.approx(walked, abs=1e-3)


def propensity(words: Vocabulary, ground: MailSpace, number: int, logits: dict[int, np.ndarray], odds: dict[str, float]) -> float:
    """Of one mail, as a draft would log it; rounded to a millionth for each clause."""
    clauses = {choice.move: choice.clause for choice in ground.mails[number].walked.choices}
    again = walk_again(
        *(words, BOOK, ground.prompt, ground.kind, clauses),
        logits=lambda ids: logits[ground.tree.find(ids)],
        odds=odds,
        explore=0.1,
        temperature=0.8,
    )
    assert again is not None
    return float(np.prod([choice.propensity for choice in again.choices]))
