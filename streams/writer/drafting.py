"""One draft: the prompt to the engine, what comes back to the guard."""

from __future__ import annotations

import asyncio
import functools
import hashlib
from collections.abc import Callable

from models.mail.guard import check, passes
from models.mail.slots import ALWAYS
from models.phrasebook.book import Book
from models.writer import Adapter, Engine, Free, Guided, Request, Walk, Written
from models.writer.prompt import Prompt, render, shared
from schemas.config import WriterSettings

BEAT = 5.0  # seconds between looks whether the model runs


async def draft(
    engine: Engine,
    book: Book,
    w: WriterSettings,
    prompt: Prompt,
    adapter: Adapter | None,
    seed: int,
    priority: int,
    touch: Callable[[], None] = lambda: None,
) -> tuple[Written, dict[str, str]] | None:
    """One draft with its verdicts (``free``: the best of several); None where the book has no chapter for the trigger.

    ``touch`` hears from time to time that the model runs: a mail may take a slow machine longer than a stuck one is given.
    Raises ModelError where the engine can't.
    """
    if prompt.trigger not in book.chapters:
        return None
    slots = frozenset(prompt.slots) | ALWAYS
    words = engine.model.words

    def walk(number: int) -> Walk:
        if w.mode == "free":
            return Free(words, slots, seed=number, temperature=w.temperature)
        kinds = (prompt.trigger, prompt.tone, slots, prompt.goods, prompt.situation)
        odds = adapter.odds if adapter is not None else None
        # The base alone knows good English, not what suits an email: the book's tags outweigh it until feedback taught an adapter.
        temperature = w.untaught_temperature if adapter is None else w.temperature
        return Guided(words, book, *kinds, seed=number, temperature=temperature, explore=w.explore, odds=odds)

    count = w.pool_oversample if w.mode == "free" else 1
    tokens = words.encode(render(prompt))
    head = words.encode(shared(prompt))
    common = len(head) if tokens[: len(head)] == head else 0
    asked = [engine.submit(Request(tokens, functools.partial(walk, seed + i), adapter, priority, common)) for i in range(count)]
    written = asyncio.gather(*(asyncio.wrap_future(one) for one in asked))
    runs = engine.counters.runs
    try:
        while not (await asyncio.wait({written}, timeout=BEAT))[0]:
            if engine.counters.runs != runs:
                runs = engine.counters.runs
                touch()
    finally:
        written.cancel()  # when we are, it is of no use; when it's done, this does nothing
    drafts = written.result()
    judged = [(one, check(one.text, slots, prompt.trigger)) for one in drafts]
    return max(judged, key=lambda pair: (passes(pair[1]), pair[0].score))


def seed_of(name: str, attempt: int) -> int:
    """63 bits that are the same at each replay."""
    return int.from_bytes(hashlib.blake2b(f"{name}/{attempt}".encode(), digest_size=8).digest(), "big") >> 1
