"""What no mail may say: rules over a draft, before any fact is put in. It fails closed.

A draft is words around slots. Whatever is a fact (number, price, date, name,
code, link) may stand in a slot only, so a draft that spells one out is refused
whole: the writer tries once more, then the approved template goes. The lists
are in ``models/phrasebook/lexicon.toml``.
"""

from __future__ import annotations

import re
import tomllib
from collections import Counter
from collections.abc import Collection, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import msgspec

from models.mail.slots import EXAMPLES, PARAGRAPH, SLOTS, slots_in

LEXICON = Path(__file__).parents[1] / "phrasebook" / "lexicon.toml"
SUBJECT_MAX = 70  # characters; phones cut at about 40 to 60, desktop clients at about 70
PREHEADER_MAX = 110  # characters; what inboxes show beside the subject
BODY_WORDS = (20, 130)  # between greeting and call to action: less says nothing, more isn't read
GREETING_WORDS = 12  # a longer first paragraph is body
LABEL_MAX = 40  # characters on the button
SLOT_REPEATS = 2  # the same fact a third time reads like a form letter

_ANY_BRACED = re.compile(r"\{[^{}]*\}")
_WORD = re.compile(r"[A-Za-z][A-Za-z'’-]*")
_LINK = re.compile(r"https?:|www\.|\b[\w-]+\.(?:com|net|org|io|co|shop|store|de|uk|eu|us)\b|<[^>]*>|\]\(", re.I)
_MONEY = re.compile(r"[$€£¥₹%]")
_SENTENCE_START = re.compile(r"(?:^|[.!?:…]\s+|\n\s*)[\"“‘'(]*\w", re.M)
_STRANGE = re.compile(r"[^\n\x20-\x7eÀ-ÿ’‘“”–—…]")  # emoji, other scripts, controls


class ParsedDraft(msgspec.Struct, frozen=True):
    """A draft taken apart. ``paragraphs``: what stands between greeting and call to action."""

    subject: str
    preheader: str
    greeting: str
    paragraphs: tuple[str, ...]
    cta: str

    @property
    def body(self) -> str:
        return " ".join(self.paragraphs)


def check(text: str, slots: Collection[str], trigger: str = "") -> dict[str, str]:
    """Verdict by rule: ``"ok"``, or the very words that it refused. ``slots``: the facts that this mail has."""
    draft, form = _parse(text)
    verdicts = {"form": form}
    verdicts |= check_words(text.replace("Subject: ", "", 1).replace("\nPreheader: ", "\n", 1), slots, trigger)
    verdicts["roles"] = _roles(draft) if draft else "no parts to look at"
    verdicts["lengths"] = _lengths(draft) if draft else "no parts to measure"
    verdicts["language"] = _language(draft.body if draft else text)
    return verdicts


def check_words(text: str, slots: Collection[str], trigger: str = "") -> dict[str, str]:
    """The rules that look at words alone: they hold for a single clause as for a whole mail."""
    words = _ANY_BRACED.sub("slot", text).replace("’", "'")
    return {
        "slots": next((f"{{{s}}}" for s in slots_in(text) if s not in SLOTS or s not in slots), "ok"),
        "braces": _first(re.compile(r"\{(?![a-z][a-z0-9_]*\})|(?<![a-z0-9_])\}|[\[\]]|<<|>>"), text),
        "digits": _numbers(words),
        "money": _money(words),
        "links": _first(_LINK, words),
        "addresses": _first(re.compile(r"\S*@\S*"), words),
        "dates": _dates(words),
        "names": _names(words),
        "claims": _claims(words, slots, trigger),
        "harm": _listed("harm", words),
        "marks": _marks(text),
    }


def passes(verdicts: Mapping[str, str]) -> bool:
    """Whether every rule said ok. No verdicts at all is no pass."""
    return bool(verdicts) and all(verdict == "ok" for verdict in verdicts.values())


def _parse(text: str) -> tuple[ParsedDraft | None, str]:
    """The draft's parts and the form's verdict: header lines, empty line, blocks, a last line that ends ``: {cta_link}``."""
    blocks = [b.strip() for b in re.split(r"\n\s*\n", text.strip())]
    head = blocks[0].split("\n")
    if not head[0].startswith("Subject: ") or not head[0][9:].strip():
        return None, "no subject line"
    preheader = ""
    if len(head) > 1:
        if len(head) > 2 or not head[1].startswith("Preheader: "):
            return None, "a header line that is neither Subject nor Preheader"
        preheader = head[1].removeprefix("Preheader: ").strip()
    if len(blocks) < 3:
        return None, "no body"
    cta = blocks[-1]
    if not re.fullmatch(r"[^\n{}]{2,}: \{cta_link\}", cta):
        return None, "the last line is not a label, a colon and {cta_link}"
    greeted = len(_shown(blocks[1]).split()) <= GREETING_WORDS and len(blocks) > 3
    paragraphs = tuple(blocks[2 if greeted else 1 : -1])
    draft = ParsedDraft(head[0][9:].strip(), preheader, blocks[1] if greeted else "", paragraphs, cta)
    return draft, "ok" if len(paragraphs) <= 4 else "too many paragraphs"


def _roles(draft: ParsedDraft) -> str:
    """Each slot where its role allows it, none more than twice, the link once."""
    places = (
        ("subject", draft.subject, {"subject"}),
        ("preheader", draft.preheader, {"preheader"}),
        ("greeting", draft.greeting, {"greeting"}),
        ("body", draft.body, set(PARAGRAPH)),
        ("call to action", draft.cta, {"cta"}),
    )
    for place, words, moves in places:
        for name in slots_in(words):
            if name in SLOTS and not moves & set(SLOTS[name].moves):
                return f"{{{name}}} in the {place}"
    counts = Counter(name for _, words, _ in places for name in slots_in(words))
    return next((f"{{{name}}} {n} times" for name, n in counts.items() if n > SLOT_REPEATS), "ok")


def _lengths(draft: ParsedDraft) -> str:
    """Measured with typical values in the slots."""
    subject, preheader, words = len(_shown(draft.subject)), len(_shown(draft.preheader)), len(_shown(draft.body).split())
    if subject > SUBJECT_MAX:
        return f"subject of {subject} characters"
    if preheader > PREHEADER_MAX:
        return f"preheader of {preheader} characters"
    if not BODY_WORDS[0] <= words <= BODY_WORDS[1]:
        return f"body of {words} words"
    return "ok" if len(draft.cta.partition(":")[0]) <= LABEL_MAX else f"label of {len(draft.cta.partition(':')[0])} characters"


def _shown(text: str) -> str:
    """The text as long as a customer will see it."""
    return _ANY_BRACED.sub(lambda m: EXAMPLES.get(m.group()[1:-1], m.group()), text)


def _numbers(words: str) -> str:
    spelled = _listed("numbers", words)
    return next((c for c in words if c.isnumeric()), spelled)


def _money(words: str) -> str:
    sign = _first(_MONEY, words)
    return sign if sign != "ok" else _listed("money", words)


def _dates(words: str) -> str:
    listed = _listed("dates", words)
    if listed != "ok":
        return listed
    capital = set(_lexicon()["dates"]["capital"])
    return next((word for word in _inner_capitals(words) if word in capital), "ok")


def _names(words: str) -> str:
    """A capital inside a sentence is a name, or a shout."""
    fine = set(_lexicon()["language"]["capitals"])
    inner = next((word for word in _inner_capitals(words) if word not in fine), "ok")
    if inner != "ok":
        return inner
    return next((w for w in _WORD.findall(words) if len(w) > 1 and w.isupper() and w not in fine), "ok")


def _inner_capitals(words: str) -> list[str]:
    starts = {match.end() - 1 for match in _SENTENCE_START.finditer(words)}
    return [m.group() for m in _WORD.finditer(words) if m.group()[0].isupper() and m.start() not in starts]


def _claims(words: str, slots: Collection[str], trigger: str) -> str:
    listed = _listed("claims", words)
    if listed != "ok":
        return listed
    for index, backed in enumerate(_lexicon()["backed"]):
        if set(backed.get("slots", ())) & set(slots) or trigger in backed.get("triggers", ()):
            continue
        found = _found(words, *_patterns(f"backed.{index}"))
        if found != "ok":
            return found
    return "ok"


def _marks(text: str) -> str:
    """At most one exclamation mark, no doubled ones, no emoji or foreign script."""
    strange = _first(_STRANGE, text)
    if strange != "ok":
        return f"character {strange!a}"
    doubled = _first(re.compile(r"[!?]{2,}|\.{4,}|[,;:]{2,}| {2,}| [,.;:!?](?!\w)"), text)
    if doubled != "ok":
        return repr(doubled)
    return "ok" if text.count("!") <= 1 else "more than one exclamation mark"


def _language(body: str) -> str:
    """Cheap and strict enough: in English every other word is one of the commonest, in no other language a fifth is."""
    words = [w.lower() for w in _WORD.findall(_ANY_BRACED.sub(" ", body).replace("’", "'"))]
    if not words:
        return "no words"
    common = sum(w in _common() for w in words) / len(words)
    return "ok" if common >= 0.3 else f"{common:.0%} common English words"


def _listed(section: str, words: str) -> str:
    return _found(words, *_patterns(section))


def _found(words: str, pattern: re.Pattern[str], exceptions: re.Pattern[str] | None) -> str:
    return _first(pattern, exceptions.sub("slot", words) if exceptions else words)


def _first(pattern: re.Pattern[str], text: str) -> str:
    match = pattern.search(text)
    return match.group() if match else "ok"


@cache
def _lexicon() -> dict[str, Any]:
    return tomllib.loads(LEXICON.read_text(encoding="utf-8"))


@cache
def _common() -> frozenset[str]:
    return frozenset(_lexicon()["language"]["words"])


@cache
def _patterns(section: str) -> tuple[re.Pattern[str], re.Pattern[str] | None]:
    """The list as one pattern of whole words, and its exceptions as another."""
    name, _, index = section.partition(".")
    entry = _lexicon()[name][int(index)] if index else _lexicon()[name]
    # "hassle-free" claims no price, while "twenty-five" is a number.
    inside = name in {"claims", "backed"}
    return _phrases(entry["words"], inside), _phrases(entry["except"], inside) if entry.get("except") else None


def _phrases(words: Collection[str], hyphens_join: bool) -> re.Pattern[str]:
    longest_first = sorted(words, key=len, reverse=True)
    spaced = (re.escape(word).replace(r"\ ", r"\s+") for word in longest_first)
    joined = r"\w-" if hyphens_join else r"\w"
    return re.compile(rf"(?<!['{joined}])(?:{'|'.join(spaced)})(?![{joined}]|'(?!s\b))", re.I)
