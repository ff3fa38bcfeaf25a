"""Releases change hands while mails are being written: no mail fails, none mixes two releases."""

from __future__ import annotations

import asyncio
import hashlib
from collections import Counter
from pathlib import Path

import msgspec
import pytest

from models.mail import guard
from models.mail.slots import ALWAYS
from models.phrasebook.book import Book
from models.writer import Adapter, Engine, Guided, Request
from models.writer.prompt import narrow, prompt_of, render
from schemas.config import Settings, WriterSettings
from schemas.mail import Draft, encode
from schemas.release import Release
from schemas.topics import RELEASES
from streams.writer import stage
from streams.writer.releases import Releases
from tests.broker.writer.test_writer_stage import Reader, intent, publishing, put, serving
from tests.tiny_model import lora, tiny

pytestmark = pytest.mark.broker
PUBLISHED, MAILS = 20, 200


def alone(engine: Engine, book: Book, draft: Draft, adapter: Adapter | None, settings: Settings) -> str:
    """The text that this release writes for this seed with nobody beside it."""
    prompt = narrow(prompt_of(draft.intent), book)

    def walk() -> Guided:
        kinds = (prompt.trigger, prompt.tone, frozenset(prompt.slots) | ALWAYS, prompt.goods, prompt.situation)
        temperature = settings.writer.untaught_temperature if adapter is None else settings.writer.temperature
        return Guided(engine.model.words, book, *kinds, seed=draft.seed, temperature=temperature, explore=settings.writer.explore)

    return engine.submit(Request(engine.model.words.encode(render(prompt)), walk, adapter)).result(60).text


async def test_twenty_releases_publish_while_two_hundred_mails_are_in_flight(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    w = WriterSettings(base_model=str(tiny()), rows=8, threads=1, pool_size=2, pool_oversample=1, fresh_share=0.5, explore=0.2)
    ready = msgspec.structs.replace(settings, writer=w)
    model = stage.open_model(ready)
    files = [lora(tmp_path / f"{n}.safetensors", model.base_sha256, seed=n, scale=0.5) for n in range(1, PUBLISHED + 1)]
    digests = [hashlib.sha256(file.read_bytes()).hexdigest() for file in files]
    published = [
        Release(f"r{n}", "c1", n, str(file), digest, model.base_sha256, 4, "")
        for n, (file, digest) in enumerate(zip(files, digests, strict=True), 1)
    ]
    began: dict[str, tuple[str, set[str]]] = {}
    choose = Releases.choose

    def noting(self: Releases, cluster: str, intent_id: str) -> tuple[str, Adapter | None]:
        found = choose(self, cluster, intent_id)
        began[intent_id] = (found[0], set(self.serving()))
        return found

    monkeypatch.setattr(Releases, "choose", noting)
    in_flight: list[int] = []
    async with publishing(ready) as out, Reader(ready) as reader, serving(ready) as task:
        await put(out, ready, intent(-1))
        await reader.until(lambda d: len(d) == 1 or task.done())  # the writer has its partitions
        reader.drafts.clear()
        desk = stage._serving[-1]
        each = MAILS // PUBLISHED
        for turn, release in enumerate(published):
            await asyncio.gather(*(put(out, ready, intent(n)) for n in range(turn * each, (turn + 1) * each)))
            async with asyncio.timeout(60):
                while len(began) <= (turn + 1) * each:  # and the first one's
                    await asyncio.sleep(0.002)
            await out.send_and_wait(ready.kafka.topic(RELEASES), encode(release), b"c1")
            async with asyncio.timeout(60):
                while release.release_id not in desk.releases.serving():
                    await asyncio.sleep(0.002)
            in_flight.append(len(desk.waiting) + desk.engine.queued)
        drafts = await reader.until(lambda d: len(d) >= MAILS or task.done(), 120)
    assert {d.intent.intent_id for d in drafts} == {f"i{n}" for n in range(MAILS)} and len(drafts) == MAILS
    assert sum(n > 0 for n in in_flight) > PUBLISHED / 2, "releases changed hands with nothing in flight: the test proves nothing"
    for draft in drafts:  # none failed, and each names the release that served when it began
        chosen, serving_then = began[draft.intent.intent_id]
        assert draft.origin in ("generated", "pool") and guard.passes(draft.guard)
        assert draft.release == chosen in serving_then
    used = Counter(d.release for d in drafts)
    assert len(used) > PUBLISHED / 2, used
    # No text is torn: with nobody beside it, the same release writes the same words for the same seed.
    book = Book.load()
    adapters = Releases(ready, model.shape, model.base_sha256, model.rank)
    engine = Engine(model, w.rows)
    try:
        for release in (None, *published):
            if release is not None:
                assert adapters.apply(encode(release))
            name, adapter = choose(adapters, "c1", "i")
            mine = [d for d in drafts if d.release == name]
            for draft in mine[:2] + mine[-2:]:
                assert await asyncio.to_thread(alone, engine, book, draft, adapter, ready) == draft.text, name
    finally:
        engine.close()
    assert len({d.text for d in drafts}) > PUBLISHED
