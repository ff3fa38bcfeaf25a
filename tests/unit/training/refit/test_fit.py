"""Fitting on the tiny model: it learns, it goes on after a kill as if nothing had happened, and each part of the recipe does its work."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save as save_tensors
from tokenizers import Tokenizer

from tests.tiny_model import tiny
from training.feedback.examples import ExampleRow
from training.refit.fit import Fitted, Recipe, fit, load_base, with_adapter
from training.refit.loss import code, embed, losses, neftune, pad, row_losses, uphill
from training.refit.plan import LEAST_HELD_OUT, Plan, plan, resume, save, split

SAID = ("Your basket waits for you", "There is news of your order", "Thank you for being with us")
RECIPE = Recipe(rank=4, learning_rate=1e-2, steps=6, batch=4, evaluate_every=2, seed=3)


def rows(count: int, start: int = 0, weight: float = 1.0) -> list[ExampleRow]:
    return [
        ExampleRow(f"i{n}", "c1", "welcome", "warm", f"Trigger: welcome, warm\nGoods: {n % 3}\n\n", SAID[n % 3], weight, 0.0, float(n))
        for n in range(start, start + count)
    ]


@pytest.fixture(scope="module")
def base() -> tuple[Any, Tokenizer, int]:
    return load_base(tiny(), 1), Tokenizer.from_file(str(tiny() / "tokenizer.json")), 0


def fitted(base: tuple[Any, Tokenizer, int], recipe: Recipe = RECIPE, **more: Any) -> Fitted:
    learn, held_out = split(rows(24))
    return fit(*base, learn, held_out, recipe, **more)


def same(one: Fitted, other: Fitted) -> bool:
    return all(torch.equal(one.tensors[name], other.tensors[name]) for name in one.tensors) and one.after == other.after


def test_it_learns(base: tuple[Any, Tokenizer, int]) -> None:
    found = fitted(base)
    assert sum(found.after) < 0.8 * sum(found.before)
    assert not [name for name, _ in base[0].named_modules() if "lora" in name]  # the base is bare again


@pytest.mark.parametrize("killed_at", [3, 4])
def test_a_killed_fit_goes_on_as_if_nothing_had_happened(base: tuple[Any, Tokenizer, int], tmp_path: Path, killed_at: int) -> None:
    recipe = replace(RECIPE, noise=5.0, epsilon=0.05)  # randomness and both kinds of passes in play

    def kill(step: int, *_: object) -> None:
        if step == killed_at:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fitted(base, recipe, progress=kill, checkpoint=tmp_path / "fit.pt")
    steps: list[int] = []
    again = fitted(base, recipe, progress=lambda step, *_: steps.append(step), checkpoint=tmp_path / "fit.pt")
    assert again.resumed == steps[0] - 1 == killed_at // 2 * 2
    assert same(again, fitted(base, recipe))
    assert not list(tmp_path.glob("*.new"))


def test_a_checkpoint_of_other_data_or_a_torn_one_is_left_alone(base: tuple[Any, Tokenizer, int], tmp_path: Path) -> None:
    file = tmp_path / "fit.pt"
    fitted(base, replace(RECIPE, seed=4), checkpoint=file)
    plain = fitted(base)
    assert fitted(base, checkpoint=file).resumed == 0
    assert fitted(base, checkpoint=file).resumed == RECIPE.steps  # its own, and whole
    file.write_bytes(file.read_bytes()[:-500])
    torn = fitted(base, checkpoint=file)
    assert torn.resumed == 0 and same(torn, plain)


def test_the_kl_term_holds_the_model_near_what_serves(base: tuple[Any, Tokenizer, int]) -> None:
    moved = []
    for kl in (0.0, 20.0):
        found = fitted(base, replace(RECIPE, kl=kl))
        moved.append(sum(found.before) - sum(found.after))
    assert moved[1] < 0.8 * moved[0]


def test_weights_count(base: tuple[Any, Tokenizer, int]) -> None:
    """What weighs nothing teaches nothing."""
    learn = [replace(row, weight=2.0 if row.text == SAID[0] else 0.0) for row in rows(30)]
    check = rows(3, 300)
    found = fit(*base, learn, check, replace(RECIPE, kl=0.0))
    gain = [before - after for before, after in zip(found.before, found.after, strict=True)]
    assert gain[0] > 2 * max(gain[1], gain[2])


def test_a_fit_against_perturbation_withstands_it_better(base: tuple[Any, Tokenizer, int]) -> None:
    worst = []
    for epsilon, ascents in ((0.0, 1), (0.3, 1), (0.3, 3)):
        learn, held_out = split(rows(24))
        found = fit(*base, learn, held_out, replace(RECIPE, steps=8, kl=0.0, epsilon=epsilon, ascents=ascents))
        model = with_adapter(base[0], 4, save_tensors(found.tensors))
        coded = code(base[1], held_out, base[2])
        assert sum(losses(model, coded, epsilon=0.3)) > sum(losses(model, coded))
        worst.append(sum(losses(model, coded, epsilon=0.3)))
        model.unload()
    assert worst[1] < worst[0] and worst[2] < worst[0]


def test_perturbations_have_the_size_they_are_said_to_have(base: tuple[Any, Tokenizer, int]) -> None:
    model = with_adapter(base[0], 4, None)
    batch = pad(code(base[1], rows(3), base[2]), "cpu")
    embedded = embed(model, batch).requires_grad_()
    (gradient,) = torch.autograd.grad(row_losses(model, embedded, batch).sum(), embedded)
    real = batch.mask.bool()
    norm = float(embedded.detach().norm(dim=-1)[real].mean())
    moved = uphill(embedded, gradient, batch.mask, 0.1)
    sizes = moved.norm(dim=-1)
    assert float(sizes[real].max()) == pytest.approx(0.1 * norm, rel=1e-3) and float(sizes[~real].sum()) == 0.0
    noise = neftune(embedded.detach(), batch.mask, 5.0) - embedded.detach()
    limits = 5.0 / torch.sqrt(batch.mask.sum(1) * embedded.shape[-1])
    assert bool((noise.abs().amax(dim=(1, 2)) <= limits + 1e-6).all()) and float(noise[~real].abs().sum()) == 0.0
    model.unload()


@pytest.mark.parametrize("count", [10, 12, 19, 24, 60])
def test_a_few_mails_still_hold_out_enough_for_a_verdict(count: int) -> None:
    learn, held_out = split(rows(count))
    assert len(held_out) >= LEAST_HELD_OUT and len(learn) >= count / 2
    assert sorted(row.intent_id for row in (*learn, *held_out)) == sorted(row.intent_id for row in rows(count))


def test_the_mix_has_its_share_of_older_examples_and_learns_nothing_held_out() -> None:
    found = rows(400)
    made = plan("c1", "", found, 300, [], replay=0.2)
    fresh = [row for row in made.learn if row.sent >= 300]
    assert (len(made.learn) - len(fresh)) / len(made.learn) == pytest.approx(0.2, abs=0.01)
    assert all(row.sent >= 300 for row in made.held_out) and all(row.sent < 300 for row in made.older)
    later = plan("c1", "", rows(500), 400, [], replay=0.3)
    held_out = {row.intent_id for one in (made, later) for row in (*one.held_out, *one.older)}
    assert not held_out & {row.intent_id for one in (made, later) for row in one.learn}
    assert plan("c1", "", rows(20), 0, rows(100, 1000), replay=0.2).learn[-1].sent >= 1000  # a split cluster's elders


def test_a_plan_is_taken_up_again_unless_the_world_has_changed(tmp_path: Path) -> None:
    found = rows(60)
    made: Plan = plan("c1", "abc", found, 20, [], replay=0.2)
    save(tmp_path / "p", made)
    assert resume(tmp_path / "p", "abc", rows(90), []) == made  # more has come since
    assert resume(tmp_path / "p", "other", found, []) is None  # another release serves
    assert resume(tmp_path / "p", "abc", [row for row in found if row is not made.learn[0]][1:], []) is None  # somebody objected
    (tmp_path / "p").write_bytes(b"torn")
    assert resume(tmp_path / "p", "abc", found, []) is None
