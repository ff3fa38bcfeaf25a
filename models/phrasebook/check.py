"""What is wrong with a phrase book: tags, wording, clashes between moves, coverage, size.

A mail is put together from clauses that never met before, so each rule looks at
what any admissible combination could say: pairs of clauses are tried with each
other where one customer could get both.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterator
from functools import cache
from itertools import combinations
from pathlib import Path

import msgspec

from models.mail import guard
from models.mail.slots import EXAMPLES, PARAGRAPH, SLOTS, slots_in
from models.phrasebook.book import EXCLUSIVE, GOODS, OFFER_SLOTS, SITUATIONS, TONES, Book, Chapter, Clause
from models.phrasebook.choice import content, of_grammar, tokens
from models.phrasebook.sample import drafts

COVERAGE = 4  # clauses for each trigger, move and tone that need no optional fact, goods or situation
MAILS = 10_000  # different mails for each trigger
SAMPLES = 60  # whole mails of each trigger put before the guard
NEAR = 0.75  # share of content words two clauses of a move may have in common
ECHO = 0.5  # the same, for clauses of two moves of a mail
PHRASE = 4  # words: a longer run that comes twice in a mail is a repetition
# Clauses that short are alike by nature ("Hi", "Hello").
_FORMULAS = ("greeting", "cta")
# Verbs that would have to agree with a name that may be "Rice" or "Peas".
_AGREES = re.compile(
    r"\{(?:product|category)\w*\} (?!this|plus|always|perhaps|besides|across|unless)"
    r"(?:is|are|was|were|has|have|does|do|isn't|aren't|\w+[^s\W]s)\b"
    r"|\b(?:is|are|how's|where's) (?:your )?\{(?:product|category)\w*\}",
    re.I,
)
_SENTENCES = re.compile(r"(?<=[.!?])\s+")


class Problem(msgspec.Struct, frozen=True):
    """One thing to mend. ``line`` is the clause's line in its file, 1 for what concerns the whole file."""

    file: str
    line: int
    clause: str
    what: str
    mend: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.clause or 'file'}: {self.what}: {self.mend}"


def problems(book: Book) -> list[Problem]:
    """Everything wrong in the book, in the order of files and lines."""
    found: list[Problem] = []
    for chapter in book.chapters.values():
        lines = _lines(chapter)
        for clause_id, what, mend in _of_chapter(book, chapter):
            found.append(Problem(chapter.file, lines.get(clause_id, 1), clause_id, what, mend))
    return sorted(found, key=lambda p: (p.file, p.line))


def sizes(book: Book) -> dict[str, int]:
    """The number of different mails for each trigger."""
    return {trigger: book.mails(trigger) for trigger in book.triggers}


def _of_chapter(book: Book, chapter: Chapter) -> Iterator[tuple[str, str, str]]:
    for clause in chapter.clauses:
        yield from _tags(clause)
        yield from _wording(clause, chapter)
    for fact in sorted(chapter.facts - SLOTS.keys()):
        yield "", f"unknown fact {fact!r}", f"use one of {', '.join(SLOTS)}"
    yield from _pairs(chapter)
    yield from _totals(chapter)
    yield from _coverage(book, chapter)
    yield from _whole(book, chapter)


def _tags(clause: Clause) -> Iterator[tuple[str, str, str]]:
    for kind, tags, known in (("tone", clause.tones, TONES), ("goods", clause.goods, GOODS), ("situation", clause.situation, SITUATIONS)):
        for tag in tags:
            if tag not in known:
                yield clause.id, f"unknown {kind} {tag!r}", f"use one of {', '.join(known)}"
    for name in sorted(set(clause.unless) - SLOTS.keys()):
        yield clause.id, f"unless unknown slot {name!r}", f"use one of {', '.join(SLOTS)}"
    for name in sorted(clause.slots):
        if name not in SLOTS:
            yield clause.id, f"unknown slot {{{name}}}", f"use one of {', '.join(SLOTS)}"
        elif clause.move not in SLOTS[name].moves:
            yield clause.id, f"{{{name}}} in a {clause.move}", f"it may stand in {', '.join(SLOTS[name].moves)}"
    if any(pair <= set(clause.situation) for pair in EXCLUSIVE):
        yield clause.id, f"situations {', '.join(clause.situation)} never meet", "ask for one of them"


def _wording(clause: Clause, chapter: Chapter) -> Iterator[tuple[str, str, str]]:
    text = clause.text
    for rule, verdict in guard.check_words(text, chapter.minimal | clause.slots, chapter.trigger).items():
        if verdict != "ok" and rule != "slots":  # unknown slots are named by _tags
            yield clause.id, f"the guard refuses it ({rule}: {verdict})", "say it without, or put the fact into a slot"
    if found := re.search(r"\b(?:an?|the|another|every|each|this) \{(?:product|category)\w*\}", text):
        yield clause.id, f"{found.group()!r}", "names can be plural or a brand: leave the article out"
    if found := _AGREES.search(text):
        yield clause.id, f"{found.group()!r} goes with a singular or a plural only", "use may, could or would, or turn the sentence round"
    if clause.move in PARAGRAPH and not re.search(r"[.!?]$", text):
        yield clause.id, "no full stop at its end", "end it as a sentence"
    if "first_name" in clause.slots and not re.match(r"(?:Hi|Hello|Hey) \{first_name\}", text):
        yield clause.id, '{first_name} reads badly where it is "there"', 'begin with "Hi {first_name}", "Hello …" or "Hey …"'
    if clause.move == "cta" and not re.fullmatch(r"[^:{}]+: \{cta_link\}", text):
        yield clause.id, "not a label and the link", 'write "Label: {cta_link}"'
    must = chapter.must.get(clause.move, ())
    if must and not any(word in text.lower() for word in must):
        yield clause.id, f"none of {', '.join(must)}", f"every {clause.move} of this file must hold one of them"
    if text != text.strip():
        yield clause.id, "spaces at its ends", "take them out"


def _pairs(chapter: Chapter) -> Iterator[tuple[str, str, str]]:
    said = {move: i for i, move in enumerate(m for m in chapter.moves if m not in _FORMULAS)}
    for a, b in combinations(chapter.clauses, 2):
        if a.text.lower() == b.text.lower():
            yield b.id, f"the same words as {a.id}", "write another, or take it out"
        elif a.move in said and b.move in said:
            if a.move == b.move:
                if _overlap(a, b) >= NEAR and len(content(a.text) | content(b.text)) > 2 and _together(a, b):
                    yield b.id, f"nearly the same as {a.id}", "write another, or take it out"
            elif _together(a, b):
                first, then = sorted((a, b), key=lambda c: said[c.move])
                for what in _clash(first, then, _neighbours(chapter, first.move, then.move)):
                    yield then.id, f"{what} as {first.id} before it", "reword one of them"


def _neighbours(chapter: Chapter, first: str, then: str) -> bool:
    """Whether the two moves can stand side by side: all moves between them can be left out."""
    between = chapter.moves[chapter.moves.index(first) + 1 : chapter.moves.index(then)]
    header = {first, then} & {"subject", "preheader"}
    return {first, then} == {"subject", "preheader"} or (not header and all(m in chapter.optional for m in between))


def _clash(first: Clause, then: Clause, neighbours: bool) -> Iterator[str]:
    """What a reader of both would stumble over."""
    if repeated := _runs(first.text) & _runs(then.text):
        yield f"the same phrase {' '.join(min(repeated))!r}"
    if _overlap(first, then) >= ECHO and len(content(first.text) & content(then.text)) >= 3:
        yield f"the same thoughts ({', '.join(sorted(content(first.text) & content(then.text)))})"
    if not neighbours:
        return
    if heads := _heads(first.text) & _heads(then.text):
        yield f"the same opening {' '.join(min(heads))!r}"
    if _SENTENCES.split(first.text)[-1].endswith("?") and _SENTENCES.split(then.text)[0].endswith("?"):
        yield "a question again"


def _totals(chapter: Chapter) -> Iterator[tuple[str, str, str]]:
    """Bounds that hold for every combination: marks, repeats of a slot, lengths."""
    most: dict[str, Counter[str]] = {move: Counter() for move in chapter.moves}
    words: dict[str, list[int]] = {move: [] for move in chapter.moves}
    for clause in chapter.clauses:
        shown = re.sub(r"\{(\w+)\}", lambda m: EXAMPLES.get(m.group(1), m.group(1)), clause.text)
        words[clause.move].append(len(shown.split()))
        most[clause.move] |= Counter(slots_in(clause.text)) + Counter({"!": clause.text.count("!")})
        limit = {"subject": guard.SUBJECT_MAX, "preheader": guard.PREHEADER_MAX}.get(clause.move)
        if limit and len(shown) > limit:
            yield clause.id, f"{len(shown)} characters with typical facts", f"stay within {limit}"
        if clause.move == "greeting" and len(shown.split()) > guard.GREETING_WORDS:
            yield clause.id, f"a greeting of {len(shown.split())} words", f"stay within {guard.GREETING_WORDS}"
    total: Counter[str] = sum(most.values(), Counter())
    for name, count in total.items():
        if count > (1 if name == "!" else guard.SLOT_REPEATS):
            moves = ", ".join(m for m in chapter.moves if most[m][name])
            yield "", f"a mail could have {name if name == '!' else '{' + name + '}'} {count} times", f"keep it out of one of {moves}"
    body = [m for m in PARAGRAPH if words.get(m)]
    least, longest = sum(min(words[m]) for m in body if m not in chapter.optional), sum(max(words[m]) for m in body)
    if least < guard.BODY_WORDS[0] or longest > guard.BODY_WORDS[1]:
        yield "", f"bodies of {least} to {longest} words", f"stay within {guard.BODY_WORDS[0]} to {guard.BODY_WORDS[1]}"


def _coverage(book: Book, chapter: Chapter) -> Iterator[tuple[str, str, str]]:
    for move in chapter.moves:
        slots = chapter.minimal | (OFFER_SLOTS if move == "offer" else frozenset())
        for tone in TONES:
            least, most = (len(book.clauses(chapter.trigger, move, tone, s)) for s in (slots, slots | SLOTS.keys()))
            if least < COVERAGE:
                yield (
                    "",
                    f"{move}, {tone}: {least} clauses that always fit",
                    f"write {COVERAGE - least} more without tags or optional facts",
                )
            elif most < COVERAGE:
                yield "", f"{move}, {tone}: {most} clauses where all facts are known", f"write {COVERAGE - most} more without an unless"
    if (mails := book.mails(chapter.trigger)) < MAILS:
        yield "", f"only {mails} different mails", f"write more clauses, for {MAILS} or more"
    if needs := {s for i in chapter.template.values() for s in book.clause(i).slots} - chapter.minimal:
        optional = {s for m in chapter.optional & chapter.template.keys() for s in book.clause(chapter.template[m]).slots}
        for name in sorted(needs - optional):
            yield "", f"the template needs {{{name}}}", "name a clause that every mail can have"


def _whole(book: Book, chapter: Chapter) -> Iterator[tuple[str, str, str]]:
    """The template and a fixed sample before the guard."""
    slots = frozenset(SLOTS)
    texts = [("template", book.template(chapter.trigger, chapter.minimal))]
    texts += [("mail", text) for text in drafts(book, chapter.trigger, "", SAMPLES, seed=1)]
    seen: set[str] = set()
    for kind, text in texts:
        for rule, verdict in guard.check(text, slots, chapter.trigger).items():
            if verdict != "ok" and f"{rule}{verdict}" not in seen:
                seen.add(f"{rule}{verdict}")
                yield "", f"a {kind} that the guard refuses ({rule}: {verdict})", f"see the mail that begins {text[:60]!r}"


def _together(a: Clause, b: Clause) -> bool:
    """Whether one mail could hold both."""

    def meet(x: Collection[str], y: Collection[str]) -> bool:
        return not x or not y or bool(set(x) & set(y))

    situation = set(a.situation) | set(b.situation)
    if a.slots & set(b.unless) or b.slots & set(a.unless):
        return False
    return meet(a.tones, b.tones) and meet(a.goods, b.goods) and not any(pair <= situation for pair in EXCLUSIVE)


def _overlap(a: Clause, b: Clause) -> float:
    """Jaccard's measure over content words; slots don't count."""
    one, two = content(a.text), content(b.text)
    return len(one & two) / len(one | two) if one | two else 0.0


@cache
def _runs(text: str) -> set[tuple[str, ...]]:
    """Runs of ``PHRASE`` words with at least one that carries meaning."""
    words = tokens(text)
    runs = (words[i : i + PHRASE] for i in range(len(words) - PHRASE + 1))
    return {run for run in runs if any(not of_grammar(w) and w[0] != "{" for w in run)}


@cache
def _heads(text: str) -> set[tuple[str, ...]]:
    """The first two words of each sentence."""
    return {tokens(s)[:2] for s in _SENTENCES.split(text) if len(tokens(s)) > 1}


def _lines(chapter: Chapter) -> dict[str, int]:
    """Clause id to its line in the file, counted from 1."""
    file = Path(chapter.file)
    if not file.exists():
        return {}
    pattern = re.compile(r"""^\s*id\s*=\s*["'](.+?)["']""")
    numbered = ((pattern.match(line), n) for n, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1))
    return {match.group(1): n for match, n in numbered if match}
