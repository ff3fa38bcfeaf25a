"""What the model may say next: approved clauses as token tries (``guided``), or free words under a ban (``free``).

A *walk* is one mail in the making. Between the engine and a walk:

    walk.start()            tokens that come first, whatever the model thinks
    walk.wants              ids among which it must choose now (``whole``: the head's best tokens too)
    walk.take(ids, logits)  chooses; returns the tokens to feed before it wants again
    walk.finished           nothing more to choose; ``walk.written()`` has the text

Forced stretches, within a clause that can't branch any more, are never sampled.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from models.mail.slots import ALWAYS, PARAGRAPH, SLOTS
from models.phrasebook.book import Book, Clause
from models.phrasebook.choice import unsaid, worth
from schemas.mail import Choice

Ids = NDArray[np.int64]
Logits = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Written:
    """One finished mail. ``score``: mean log-probability of what was chosen; ``special``: share of moves that fit this case alone."""

    text: str
    choices: tuple[Choice, ...]
    score: float
    special: float
    tokens: int
    seed: int = 0


class Walk(Protocol):
    """See the module."""

    finished: bool
    wants: Ids
    whole: bool

    def start(self) -> list[int]: ...
    def take(self, ids: Ids, logits: Logits) -> list[int]: ...
    def written(self) -> Written: ...


@dataclass(slots=True)
class Node:
    """One place in a trie. ``clause``: one ends here. ``paths``: clause indices below."""

    children: dict[int, Node] = field(default_factory=dict)
    clause: int = -1


class Vocabulary:
    """Segments of drafts as tokens. A segment starts with its separator, so segments' tokens joined are the whole draft's."""

    def __init__(self, tokenizer: Tokenizer, eos: int) -> None:
        self.tokenizer, self.eos = tokenizer, eos
        self.encode = lru_cache(maxsize=20_000)(self._encode)
        self.trie = lru_cache(maxsize=4_000)(self._trie)
        self.leaning = lru_cache(maxsize=4_000)(self._leaning)

    def _encode(self, text: str) -> tuple[int, ...]:
        return tuple(self.tokenizer.encode(text, add_special_tokens=False).ids)

    def _leaning(self, segments: tuple[str, ...], scores: tuple[float, ...]) -> dict[tuple[int, ...], float]:
        return lean(self.trie(segments), scores)

    def _trie(self, segments: tuple[str, ...]) -> Node:
        root = Node()
        for index, segment in enumerate(segments):
            node = root
            for token in self.encode(segment):
                node = node.children.setdefault(token, Node())
            if node.clause < 0:
                node.clause = index
        return root


def separator(move: str, said: Collection[str]) -> str:
    """What stands between ``move`` and the moves said before it, as ``book.render`` has it."""
    if move == "subject":
        return "Subject: "
    if move == "preheader":
        return "\nPreheader: " if said else "Preheader: "
    if move in PARAGRAPH and any(m in PARAGRAPH for m in said):
        return " "
    return "\n\n" if said else ""


def lean(root: Node, scores: Sequence[float]) -> dict[tuple[int, ...], float]:
    """By path in a trie: the log of the mean of exp(score) of the clauses that it leads to; -1 ends a clause where longer ones go on."""
    found: dict[tuple[int, ...], float] = {}

    def below(node: Node, path: tuple[int, ...]) -> list[float]:
        under = [scores[node.clause]] if node.clause >= 0 else []
        if under and node.children:
            found[(*path, -1)] = under[0]
        for token, child in node.children.items():
            under += below(child, (*path, token))
        found[path] = float(np.logaddexp.reduce(under)) - float(np.log(len(under)))
        return under

    below(root, ())
    return found


class Guided:
    """A walk along the phrase book: at each move the model says which clause, and the draft remembers with what probability.

    With probability ``explore`` a move's clause is drawn uniformly; the logged
    propensity is that of the mixture. The choice leans, in nats, towards
    clauses made for this very case (``worth``) and those that feedback spoke
    for (``odds``, by clause id). A clause that says again
    what was said (``models.phrasebook.choice``) isn't admissible unless nothing
    else is.
    """

    whole = False

    def __init__(
        self,
        words: Vocabulary,
        book: Book,
        trigger: str,
        tone: str,
        slots: Collection[str],
        goods: str,
        situation: Collection[str],
        *,
        seed: int,
        temperature: float = 0.8,
        explore: float = 0.1,
        odds: Mapping[str, float] | None = None,
    ) -> None:
        self.words, self.book, self._odds = words, book, odds or {}
        self._query = (tone, frozenset(slots) | ALWAYS, goods or "general", tuple(situation))
        self._trigger = trigger
        self._moves = [m for m in book.moves(trigger) if self._fitting(m)]
        self.seed, self._random = seed, np.random.Generator(np.random.PCG64(seed))
        self._temperature, self._explore = max(temperature, 1e-3), explore
        self.said: dict[str, Clause] = {}
        self._choices: list[Choice] = []
        self._log, self._branches = 0.0, 0
        self.finished = not self._moves
        self.wants: Ids = np.zeros(0, np.int64)
        self._tokens = 0

    def _fitting(self, move: str) -> list[Clause]:
        tone, slots, goods, situation = self._query
        return self.book.clauses(self._trigger, move, tone, slots, goods, situation)

    def admissible(self, move: str) -> list[Clause]:
        """Clauses for ``move`` after what was said; never empty."""
        return unsaid(self._fitting(move), self.said.values())

    @property
    def written_choices(self) -> tuple[Choice, ...]:
        """Choices made so far."""
        return tuple(self._choices)

    def start(self) -> list[int]:
        return [] if self.finished else self._open()

    def _open(self) -> list[int]:
        """Begin the next move; tokens that need no choice."""
        self._move = self._moves[len(self.said)]
        self._clauses = self.admissible(self._move)
        before = separator(self._move, self.said)
        self._node = self.words.trie(tuple(before + c.text for c in self._clauses))
        self._path: tuple[int, ...] = ()  # tokens of this clause so far
        self._p = 1.0  # of the path, under the model alone
        pick = self._draw()
        self._drawn = None if pick is None else self.words.encode(before + pick.text)
        said = list(self.said.values())
        scores = tuple(self._odds.get(c.id, 0.0) + worth(c, said) for c in self._clauses)
        self._leaning = self.words.leaning(tuple(before + c.text for c in self._clauses), scores) if any(scores) else {}
        return self._run()

    def _draw(self) -> Clause | None:
        """The clause that this move takes whatever the model thinks: now and then one at random, to learn from."""
        if self._random.random() >= self._explore:
            return None
        return self._clauses[int(self._random.integers(len(self._clauses)))]

    def _run(self) -> list[int]:
        """Go on until a choice is needed or the mail is whole."""
        forced: list[int] = []
        while True:
            node = self._node
            if node.clause >= 0 and (not node.children or self._ended()):
                self._close(node.clause)
                if len(self.said) == len(self._moves):
                    self.finished = True
                    self.wants = np.zeros(0, np.int64)
                    return forced  # what follows is known: no need to feed it
                return forced + self._open()
            if len(node.children) == 1 and node.clause < 0:
                token = next(iter(node.children))
                forced.append(token)
                self._step(token)
                continue
            # A clause may end where a longer one goes on: stopping there is one more choice.
            self.wants = np.array([*node.children, *([self._stop()] if node.clause >= 0 else [])], np.int64)
            return forced

    def _ended(self) -> bool:
        return self._path[-1:] == (-1,)

    def _stop(self) -> int:
        """The token whose logit stands for "this clause is whole": a line's end, or the text's."""
        return self.words.eos if len(self.said) + 1 == len(self._moves) else self.words.encode("\n")[0]

    def _stops(self, token: int | np.int64) -> bool:
        return self._node.clause >= 0 and int(token) == self._stop()

    def _towards(self, drawn: tuple[int, ...], ids: Ids) -> int:
        """Which of ``ids`` leads on to a clause of these tokens."""
        ahead = drawn[len(self._path)] if len(self._path) < len(drawn) else self._stop()
        return int(np.flatnonzero(ids == ahead)[0])

    def _step(self, token: int) -> None:
        self._path += (token,)
        self._node = self._node.children[token]
        self._tokens += 1

    def take(self, ids: Ids, logits: Logits) -> list[int]:
        """Choose among ``wants``. ``logits`` stand in the order of ``ids``."""
        scaled = logits.astype(np.float64) / self._temperature
        if self._leaning:
            scaled += [self._leaning[(*self._path, -1 if self._stops(i) else int(i))] for i in ids]
        p = np.exp(scaled - scaled.max())
        p /= p.sum()
        chosen = int(self._random.choice(len(ids), p=p))
        if self._drawn is not None:
            chosen = self._towards(self._drawn, ids)
        self._p *= float(p[chosen])
        self._log += float(np.log(max(p[chosen], 1e-12)))
        self._branches += 1
        if self._stops(ids[chosen]):
            self._path += (-1,)
            return self._run()
        self._step(int(ids[chosen]))
        return [int(ids[chosen]), *self._run()]

    def _close(self, index: int) -> None:
        clause = self._clauses[index]
        self.said[self._move] = clause
        propensity = self._explore / len(self._clauses) + (1 - self._explore) * self._p
        self._choices.append(Choice(self._move, clause.id, round(min(propensity, 1.0), 6)))

    def written(self) -> Written:
        special = sum(bool(c.goods or c.situation or c.slots - ALWAYS) for c in self.said.values()) / max(len(self.said), 1)
        score = self._log / max(self._branches, 1)
        return Written(self.book.compose(self.said), self.written_choices, score, special, self._tokens, self.seed)


BANNED = re.compile(r"[\d$€£¥%{}\[\]<>@|\\_#*~^=+]|https?|www|\.com")


def ban(words: Vocabulary) -> NDArray[np.float32]:
    """f32[vocab] for the head: tokens with digits, currency, braces or markup never stand among the best. Slots come from their trie."""
    size = words.tokenizer.get_vocab_size()
    out = np.zeros(size, np.float32)
    for token in range(size):
        text = words.tokenizer.decode([token], skip_special_tokens=False)
        if token != words.eos and (BANNED.search(text) or "\ufffd" in text or not text or text.startswith("<|")):
            out[token] = -1e9
    return out


class Free:
    """A walk in which the model writes every word; slots come whole or not at all, and the form's labels are given.

    For larger base models: the guard and a reranker decide what is kept. A mail
    that meets ``limit`` is cut at its last sentence, then closed by the form.
    """

    whole = True

    def __init__(self, words: Vocabulary, slots: Collection[str], *, seed: int, temperature: float = 0.7, limit: int = 130) -> None:
        self.words, self.seed = words, seed
        self._random = np.random.Generator(np.random.PCG64(seed))
        self._temperature, self._limit = max(temperature, 1e-3), limit
        open_to = sorted((set(slots) | ALWAYS) - {"cta_link"})
        self._slots = words.trie(
            tuple(f"{before}{{{s}}}{after}" for s in open_to if s in SLOTS for before in (" ", "") for after in ("", ",", "."))
        )
        self._node: Node | None = None
        self._out: list[int] = []
        self._log = 0.0
        self._choice = 0
        self.finished = False
        self.wants: Ids = np.array(list(self._slots.children), np.int64)

    def start(self) -> list[int]:
        self._out = list(self.words.encode("Subject:"))
        return list(self._out)

    def take(self, ids: Ids, logits: Logits) -> list[int]:
        if self._node is not None and self._node.clause >= 0:
            # Inside the slot trie a slot may end: any ordinary token ends it.
            self._node = None
        scaled = logits.astype(np.float64) / self._temperature
        p = np.exp(scaled - scaled.max())
        p /= p.sum()
        token = int(ids[int(self._random.choice(len(ids), p=p))])
        self._log += float(np.log(max(p[list(ids).index(token)], 1e-12)))
        self._choice += 1
        fed = self._follow(token)
        if token == self.words.eos or (len(self._out) >= self._limit and self.whole):  # a slot that has begun is finished first
            self.finished = True
            return []
        return fed

    def _follow(self, token: int) -> list[int]:
        """The token, and what a slot forces after it."""
        fed = [token]
        node = (self._node or self._slots).children.get(token)
        while node is not None and node.clause < 0 and len(node.children) == 1:
            fed.append(next(iter(node.children)))
            node = node.children[fed[-1]]
        self._node = node if node is not None and node.children and node.clause < 0 else None
        self.whole = self._node is None
        self.wants = np.array(list((self._node or self._slots).children), np.int64)
        if token != self.words.eos:
            self._out += fed
        return fed

    def written(self) -> Written:
        text = self.words.tokenizer.decode(self._out).strip()
        if len(self._out) >= self._limit and "." in text:
            text = text[: text.rindex(".") + 1]
        text = formed(text)
        return Written(text, (), self._log / max(self._choice, 1), 0.0, len(self._out), self.seed)


def formed(text: str) -> str:
    """Free text in the form of a draft: a subject line, an empty line, the body, a call to action that ends in the link."""
    head, _, rest = text.partition("\n")
    lines = [line.strip() for line in rest.splitlines() if line.strip()]
    pre = [line for line in lines if line.startswith("Preheader: ")][:1]
    body = [line.removeprefix("Body: ") for line in lines if not line.startswith("Preheader: ")]
    return "\n".join([head, *pre]) + "\n\n" + "\n\n".join(body) + "\n\nHave a look: {cta_link}"
