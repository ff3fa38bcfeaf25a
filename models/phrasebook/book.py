"""The phrase book: reading it, asking which clauses fit, composing a draft, counting its mails."""

from __future__ import annotations

import tomllib
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from models.mail.slots import ALWAYS, MOVES, PARAGRAPH, slots_in
from models.phrasebook.choice import EXCLUSIVE as EXCLUSIVE
from models.phrasebook.choice import themes, thoughts
from models.phrasebook.clause import Clause as Clause
from schemas.errors import PhrasebookError

TONES: tuple[str, ...] = ("warm", "crisp", "playful")
GOODS: tuple[str, ...] = tuple(
    "bakery produce dairy meat seafood frozen snacks sweets drinks coffee_tea alcohol pantry baby pets household paper personal_care health"
    " beauty clothing electronics kitchen garden sports toys books general".split()
)
SITUATIONS: tuple[str, ...] = tuple(
    "first_order regular big_basket small_basket coupon_user long_gone just_back single_item many_items".split()
)
OFFER_SLOTS: frozenset[str] = frozenset({"offer", "coupon_code"})
HOME = Path(__file__).parent / "en"


class Chapter(msgspec.Struct, frozen=True):
    """One trigger's file. ``facts``: slots that this trigger always supplies, besides those that every mail has.

    ``must``: for a move, words of which each of its clauses holds one ("sorry" in a care mail's reason).
    """

    trigger: str
    moves: tuple[str, ...]
    optional: frozenset[str]
    facts: frozenset[str]
    clauses: tuple[Clause, ...]
    template: dict[str, str]
    file: str
    must: dict[str, tuple[str, ...]] = {}

    @property
    def minimal(self) -> frozenset[str]:
        """Slots that no mail of this trigger lacks."""
        return ALWAYS | self.facts


class _ClauseForm(msgspec.Struct, forbid_unknown_fields=True):
    id: str
    move: str
    text: str
    tones: tuple[str, ...] = ()
    goods: tuple[str, ...] = ()
    situation: tuple[str, ...] = ()
    unless: tuple[str, ...] = ()


class _FileForm(msgspec.Struct, forbid_unknown_fields=True):
    trigger: str
    moves: tuple[str, ...]
    clause: tuple[_ClauseForm, ...]
    template: dict[str, str]
    optional: tuple[str, ...] = ()
    facts: tuple[str, ...] = ()
    must: dict[str, tuple[str, ...]] = {}


class Book:
    """All chapters of one language. Read only; safe to share."""

    def __init__(self, chapters: Iterable[Chapter]) -> None:
        self.chapters: dict[str, Chapter] = {chapter.trigger: chapter for chapter in chapters}
        self._by_id: dict[str, Clause] = {}
        self._by_move: dict[tuple[str, str], list[Clause]] = {}
        for chapter in self.chapters.values():
            for clause in chapter.clauses:
                if clause.id in self._by_id:
                    raise PhrasebookError(f"{chapter.file}: clause {clause.id} stands twice: give one of them another id")
                self._by_id[clause.id] = clause
                self._by_move.setdefault((chapter.trigger, clause.move), []).append(clause)

    @classmethod
    def load(cls, folder: Path | str | None = None) -> Book:
        """Read every ``<trigger>.toml`` of the folder (default: the English book that ships). Raises PhrasebookError."""
        home = Path(folder) if folder is not None else HOME
        files = sorted(home.glob("*.toml"))
        if not files:
            raise PhrasebookError(f"{home}: no phrase book there: point to a folder with <trigger>.toml files")
        return cls(_read(file) for file in files)

    @property
    def triggers(self) -> tuple[str, ...]:
        return tuple(self.chapters)

    def chapter(self, trigger: str) -> Chapter:
        """Raises PhrasebookError for a trigger without a file."""
        try:
            return self.chapters[trigger]
        except KeyError:
            raise PhrasebookError(f"phrase book: no file for trigger {trigger!r}: add {trigger}.toml, or switch the trigger off") from None

    def moves(self, trigger: str) -> tuple[str, ...]:
        """The trigger's moves in the order they are said."""
        return self.chapter(trigger).moves

    def optional(self, trigger: str) -> frozenset[str]:
        """Moves that a mail may leave out."""
        return self.chapter(trigger).optional

    def clause(self, clause_id: str) -> Clause:
        """Raises PhrasebookError for an id that the book doesn't hold."""
        try:
            return self._by_id[clause_id]
        except KeyError:
            raise PhrasebookError(f"phrase book: no clause {clause_id!r}: it was renamed or taken out; choose again") from None

    def clauses(
        self,
        trigger: str,
        move: str,
        tone: str = "",
        slots: Collection[str] = ALWAYS,
        goods: str = "general",
        situation: Collection[str] = (),
    ) -> list[Clause]:
        """The clauses that may be said there, in the file's order; empty where the move has none that fits."""
        self.chapter(trigger)
        have = frozenset(slots)
        return [c for c in self._by_move.get((trigger, move), ()) if c.fits(tone, have, goods, situation)]

    def compose(self, choices: Mapping[str, Clause | str]) -> str:
        """A draft, slots unfilled, from one clause (or its id) for each move that is said. Raises PhrasebookError."""
        said = {move: self.clause(c) if isinstance(c, str) else c for move, c in choices.items()}
        wrong = next((move for move, c in said.items() if c.move != move), None)
        if wrong:
            raise PhrasebookError(f"clause {said[wrong].id} is a {said[wrong].move}, not a {wrong}: choose a clause of that move")
        return render({move: c.text for move, c in said.items()})

    def fallback(self, trigger: str, slots: Collection[str]) -> dict[str, Clause]:
        """The approved template's clauses. Optional moves whose facts are missing are left out. Raises PhrasebookError."""
        chapter = self.chapter(trigger)
        said: dict[str, Clause] = {}
        for move in chapter.moves:
            if move not in chapter.template:
                continue
            clause = self.clause(chapter.template[move])
            missing = clause.slots - set(slots) - ALWAYS
            if not missing:
                said[move] = clause
            elif move not in chapter.optional:
                raise PhrasebookError(
                    f"{Path(chapter.file).name}: template needs {{{min(missing)}}}, which this mail lacks: name a clause without it"
                )
        return said

    def template(self, trigger: str, slots: Collection[str] = ALWAYS) -> str:
        """The approved fallback as a draft."""
        return self.compose(self.fallback(trigger, slots))

    def mails(self, trigger: str) -> int:
        """How many different mails the book holds for a trigger: clause tuples that one and the same customer could get.

        Exact, not the bare product: clauses for coffee never meet clauses for pet food, nor a first order a regular's.
        Counted move by move over what the choices so far leave open.
        """
        chapter = self.chapter(trigger)
        judged = {name for clause in chapter.clauses for name in clause.unless}  # facts that must be known or unknown
        # (tones still possible, goods still possible, situations asked for, facts known, facts unknown) -> ways to get here
        nothing: frozenset[str] = frozenset()
        ways = {(frozenset(TONES), frozenset(GOODS), nothing, nothing, nothing): 1}
        for move in chapter.moves:
            after = dict(ways) if move in chapter.optional else {}
            for clause in self._by_move.get((trigger, move), ()):
                for (tones, goods, situation, known, unknown), count in ways.items():
                    state = (
                        tones & frozenset(clause.tones or TONES),
                        goods & frozenset(clause.goods or GOODS),
                        situation | frozenset(clause.situation),
                        known | (clause.slots & judged),
                        unknown | frozenset(clause.unless),
                    )
                    if state[0] and state[1] and not state[3] & state[4] and not any(pair <= state[2] for pair in EXCLUSIVE):
                        after[state] = after.get(state, 0) + count
            ways = after
        return sum(ways.values())


def render(parts: Mapping[str, str]) -> str:
    """Draft text from the texts of the moves: two headers, greeting, one paragraph, call to action; absent moves left out."""
    head = [f"{label}: {parts[move]}" for label, move in (("Subject", "subject"), ("Preheader", "preheader")) if move in parts]
    paragraph = " ".join(parts[move] for move in PARAGRAPH if move in parts)
    blocks = ["\n".join(head), parts.get("greeting", ""), paragraph, parts.get("cta", "")]
    return "\n\n".join(block for block in blocks if block)


def _read(file: Path) -> Chapter:
    """One file, checked for its form; what it says is checked by ``models.phrasebook.check``."""
    try:
        raw: dict[str, Any] = tomllib.loads(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise PhrasebookError(f"{file}: can't be read as TOML ({error}): mend that line") from error
    try:
        form = msgspec.convert(raw, _FileForm)
    except msgspec.ValidationError as error:
        raise PhrasebookError(f"{file}{_named(raw, str(error))}: {error}: see docs/phrasebook.md for the format") from error
    if form.trigger != file.stem:
        raise PhrasebookError(f"{file}: trigger is {form.trigger!r}: name the file {form.trigger}.toml, or the trigger {file.stem}")
    common = themes(c.text for c in form.clause)
    clauses = tuple(
        Clause(
            c.id,
            c.move,
            c.text,
            c.tones,
            c.goods,
            c.situation,
            c.unless,
            form.trigger,
            frozenset(slots_in(c.text)),
            frozenset() if c.move == "cta" else thoughts(c.text) - common,
        )
        for c in form.clause
    )
    chapter = Chapter(
        form.trigger, form.moves, frozenset(form.optional), frozenset(form.facts), clauses, form.template, str(file), form.must
    )
    _check_form(chapter)
    return chapter


def _check_form(chapter: Chapter) -> None:
    """Moves known and in order, clauses under them, template whole. Raises PhrasebookError."""
    where = chapter.file
    if list(chapter.moves) != [m for m in MOVES if m in chapter.moves]:
        raise PhrasebookError(f"{where}: moves {list(chapter.moves)}: use {', '.join(MOVES)}, in this order")
    if lost := sorted(chapter.optional - set(chapter.moves)):
        raise PhrasebookError(f"{where}: optional move {lost[0]!r} is not among moves: take it out or add it there")
    by_id = {c.id: c for c in chapter.clauses}
    for clause in chapter.clauses:
        if clause.move not in chapter.moves:
            raise PhrasebookError(
                f"{where}: clause {clause.id}: move {clause.move!r} is not among this file's moves: {', '.join(chapter.moves)}"
            )
        if clause.move == "offer" and not clause.slots & OFFER_SLOTS:
            raise PhrasebookError(f"{where}: clause {clause.id}: an offer states {{offer}} or {{coupon_code}}: put one in")
    for move, clause_id in chapter.template.items():
        if clause_id not in by_id or by_id[clause_id].move != move:
            raise PhrasebookError(f"{where}: template.{move} = {clause_id!r}: name the id of a {move} clause of this file")
    if lacking := [m for m in chapter.moves if m not in chapter.template and m not in chapter.optional]:
        raise PhrasebookError(f"{where}: template lacks {lacking[0]}: name one of its clauses")


def _named(raw: dict[str, Any], error: str) -> str:
    """`` clause <id>`` where the validation error points into the list of clauses, for the reader's sake."""
    _, found, rest = error.partition("$.clause[")
    index = rest.partition("]")[0]
    entries = raw.get("clause")
    if not found or not index.isdigit() or not isinstance(entries, list) or int(index) >= len(entries):
        return ""
    entry = entries[int(index)]
    return f" clause {entry.get('id', index) if isinstance(entry, dict) else index}"
