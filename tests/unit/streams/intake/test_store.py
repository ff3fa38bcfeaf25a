"""The store of examples: small files laid together hold what they held."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.config import Settings
from schemas.mail import Choice, Example, Feedback, iso
from schemas.topics import EXAMPLES, FEEDBACK
from training.feedback import examples

T = 1_700_000_000.0


def put(folder: Path, topic: str, first: int, values: list[Example] | list[Feedback]) -> None:
    flat = [examples._flat(value) for value in values]
    examples._keep(folder / f"{topic}-0-{first}-{first + len(values) - 1}.parquet", flat)


def mail(n: int) -> Example:
    return Example(f"i{n}", "c0", "welcome", "p", f"text {n}", (Choice("subject", "w1", 0.5),), "base", "pool", "warm", iso(T + n), f"u{n}")


def answer(n: int, kind: str, after: float = 60.0, customer: str = "", simulated: bool = False) -> Feedback:
    return Feedback(f"i{n}", customer or f"u{n}", kind, iso(T + n + after), simulated=simulated)  # type: ignore[arg-type]


@settings(deadline=None, max_examples=10)
@given(st.lists(st.integers(1, 5), min_size=2, max_size=8), st.data())
def test_laid_together_they_say_the_same(tmp_path_factory: object, sizes: list[int], data: st.DataObject) -> None:
    folder = tmp_path_factory.mktemp("store")  # type: ignore[attr-defined]
    first = 0
    for size in sizes:
        put(folder, EXAMPLES, first, [mail(n) for n in range(first, first + size)])
        kinds = data.draw(st.lists(st.sampled_from(["opened", "clicked"]), min_size=size, max_size=size))
        put(folder, FEEDBACK, first, [answer(first + n, kind, simulated=n % 2 == 0) for n, kind in enumerate(kinds)])
        first += size
    before, offsets = examples.rows(Settings(), folder), examples.read_to(folder)
    examples._lay_together(folder, many=2)
    assert len(list(folder.glob("*.parquet"))) == 2
    assert examples.rows(Settings(), folder) == before
    assert examples.read_to(folder) == offsets


def test_a_kill_between_laying_together_and_tidying_reads_nothing_twice(tmp_path: Path) -> None:
    for n in range(4):
        put(tmp_path, EXAMPLES, n, [mail(n)])
        put(tmp_path, FEEDBACK, n, [answer(n, "clicked")])
    whole = [row for file in sorted(tmp_path.glob(f"{EXAMPLES}-0-*")) for row in pq.read_table(file).to_pylist()]
    before = examples.rows(Settings(), tmp_path)
    examples._keep(tmp_path / f"{EXAMPLES}-0-0-3.parquet", whole)
    assert examples.rows(Settings(), tmp_path) == before


def test_whoever_objects_without_naming_a_mail_or_is_erased_is_out(tmp_path: Path) -> None:
    put(tmp_path, EXAMPLES, 0, [mail(n) for n in range(4)])
    named = [Feedback("", "u1", "unsubscribed", iso(T)), Feedback("", "u2", "erased", iso(T)), answer(3, "opened")]
    put(tmp_path, FEEDBACK, 0, named)
    assert {row.intent_id for row in examples.rows(Settings(), tmp_path)["c0"]} == {"i0", "i3"}


def test_only_what_follows_a_mail_within_the_window_is_its_merit(tmp_path: Path) -> None:
    week = Settings().training.attribution
    put(tmp_path, EXAMPLES, 0, [mail(n) for n in range(3)])
    put(tmp_path, FEEDBACK, 0, [answer(0, "clicked", -3600.0), answer(1, "clicked", week - 60), answer(2, "clicked", week + 60)])
    assert [row.reward for row in examples.rows(Settings(), tmp_path)["c0"]] == [0.0, 1.0, 0.0]
