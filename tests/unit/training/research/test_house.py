"""The house adapter's teacher and student, on the tiny model: the right targets at the right places, and a student that comes nearer."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from models.mail.slots import ALWAYS
from models.phrasebook.book import EXCLUSIVE, GOODS, Book, Clause
from models.phrasebook.choice import worth
from models.writer.automaton import Vocabulary
from models.writer.base import fingerprint, load
from models.writer.graph import prepare
from schemas.errors import ModelError
from tests.tiny_model import tiny

torch = pytest.importorskip("torch")
house = pytest.importorskip("training.research.house")
from training.research.blind_reading import by_chance, filled, special, tally  # noqa: E402
from training.research.scenes import STOCK, UNSEEN, scenes  # noqa: E402

BOOK = Book.load()


@pytest.fixture(scope="module")
def words() -> Vocabulary:
    base = load(tiny(), house=None)
    return Vocabulary(base.tokenizer, base.shape.eos)


def test_scenes_are_likely_and_the_same_for_a_seed() -> None:
    drawn = list(itertools.islice(scenes(BOOK, 3), 64))
    assert drawn == list(itertools.islice(scenes(BOOK, 3), 64))
    assert {s.prompt.trigger for s in drawn} == set(BOOK.triggers)
    assert set(STOCK) == set(GOODS) and set(UNSEEN) < set(GOODS)
    for s in drawn:
        assert set(s.prompt.slots) <= set(s.facts)
        assert BOOK.chapter(s.prompt.trigger).facts <= set(s.facts)
        assert not any(pair <= set(s.prompt.situation) for pair in EXCLUSIVE)


def test_a_clause_for_the_case_is_worth_more_and_a_fact_only_once() -> None:
    plain, coffee = Clause("a", "body", "Hello"), Clause("b", "body", "Coffee", goods=("coffee_tea",))
    named = Clause("c", "reason", "{product_1}", slots=frozenset({"product_1"}))
    assert worth(coffee, []) > worth(named, []) > worth(plain, [])
    assert worth(named, [named]) == worth(plain, [named])


def test_a_lesson_asks_at_the_branches_with_the_teachers_odds(words: Vocabulary) -> None:
    for number, scene in enumerate(itertools.islice(scenes(BOOK, 1, ["coffee_tea"]), 16)):
        made = house.lesson(words, BOOK, scene, number)
        assert made.places == sorted(set(made.places)) and made.places[-1] == len(made.ids) - 1
        for place, allowed, wanted in zip(made.places, made.allowed, made.wanted, strict=True):
            assert len(allowed) == len(wanted) > 1
            assert wanted.sum() == pytest.approx(1.0) and (wanted > 0).all()
            if place + 1 < len(made.ids):
                assert made.ids[place + 1] in allowed


def test_masses_add_up_along_the_trie(words: Vocabulary) -> None:
    texts = ("Hello there", "Hello there again", "Good day")
    p = np.array([0.5, 0.3, 0.2])
    found = house.masses(words.trie(texts), p)
    assert found[()] == pytest.approx(1.0)
    assert found[words.encode("Good day")] == pytest.approx(0.2)
    hello = words.encode("Hello there")
    assert found[hello] == pytest.approx(0.8) and found[(*hello, -1)] == pytest.approx(0.5)


def test_the_student_comes_nearer_and_its_file_is_merged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(house, "JUDGED", 4)
    base = load(tiny(), house=None)
    recipe = replace(house.HouseRecipe(), steps=12, rank=4, layers=2, judge_every=4, learning_rate=2e-2)
    out = tmp_path / "house.safetensors"
    history = house.teach(base, tiny(), BOOK, recipe, lambda tensors: house.write(tensors, base.sha256, recipe.rank, out))
    assert min(value for _, value, _ in history) < 0.9 * history[0][1]
    assert history[-1][2] < history[0][2]  # and it speaks better than before
    again = house.teach(base, tiny(), BOOK, replace(recipe, steps=4), lambda _: None)
    assert again[0] == history[0]
    merged = load(tiny(), house=out)
    assert merged.sha256 != base.sha256
    name = "model.layers.1.self_attn.q_proj.weight"
    assert np.abs(merged.weights[name] - load(tiny(), house=None).weights[name]).max() > 0
    assert prepare(tiny(), tmp_path, "int8", house=out) != prepare(tiny(), tmp_path, "int8", house=None)


def test_reading_counts_what_could_be_special(words: Vocabulary, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scene = next(s for s in scenes(BOOK, 5, ["coffee_tea"]) if s.prompt.trigger == "recommendation")
    written = by_chance(words, BOOK, scene, 1)
    taken, could = special(BOOK, scene, written)
    assert 0 <= taken <= could and could >= 2
    assert scene.facts["product_1"] in filled(scene, written.text) or "product_1" not in written.text
    assert "{" not in filled(scene, written.text) and ALWAYS
    key = tmp_path / "key.json"
    key.write_text(json.dumps([{"model": "A", "special": [2, 3], "chance": [1, 3]}, {"model": "B", "special": [1, 1], "chance": [0, 1]}]))
    tally(key, ["A", "A"])
    assert "model better 1, random better 1, even 0" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="1 verdicts for 2 pairs"):
        tally(key, ["A"])


def test_a_house_adapter_goes_with_its_own_base_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it lies beside the code, another base does without it; given by hand, it is refused."""
    other = tmp_path / "house.safetensors"
    house.write({}, "0" * 64, 4, other)
    with pytest.raises(ModelError, match="trained on another base model"):
        load(tiny(), house=other)
    monkeypatch.setattr("models.writer.base.HOUSE", other)
    assert fingerprint(tiny(), other) == fingerprint(tiny(), None) == load(tiny(), other).sha256
