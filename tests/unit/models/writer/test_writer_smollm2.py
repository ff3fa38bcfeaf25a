"""The default base model: parity, perplexity of int8, and mails. Some 100 tokens each, so that it stays short."""

from __future__ import annotations

import time
import warnings
from pathlib import Path

import numpy as np
import pytest

from models.mail import guard
from models.mail.slots import ALWAYS
from models.phrasebook.book import Book
from models.writer import Base, Cache, Engine, Guided, Model, Request, adapters, build, export_hf, load, locate
from models.writer.base import HOUSE, LINEARS, fingerprint, read_safetensors
from models.writer.prompt import Prompt, render

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.model
BOOK = Book.load()


@pytest.fixture(scope="module")
def base() -> Base:
    return load(locate(), house=None)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("smollm2")


@pytest.fixture(scope="module")
def fp32(base: Base, folder: Path) -> Model:
    return Model(build(base, folder / "fp32", "fp32", rank=8, max_len=256), 1)


@pytest.fixture(scope="module")
def int8(base: Base, folder: Path) -> Model:
    return Model(build(base, folder / "int8", "int8", rank=8, max_len=256), 1)


def _perplexity(model: Model, texts: list[str]) -> float:
    """Per token, the texts side by side: exactly the path that mails take."""
    rows = [list(model.words.encode(text)) for text in texts]
    cache = Cache(model, len(rows))
    loss: list[float] = []
    for at in range(max(map(len, rows)) - 1):
        active = np.array([at + 1 < len(row) for row in rows])
        hidden = cache.step(np.array([row[at] if at < len(row) else 0 for row in rows], np.int64), active)
        for number in np.flatnonzero(active):
            logits = (model.output @ hidden[number]).astype(np.float64)
            loss.append(np.log(np.exp(logits - logits.max()).sum()) + logits.max() - logits[rows[number][at + 1]])
    return float(np.exp(np.mean(loss)))


def test_int8_costs_no_more_than_one_percent_of_perplexity(fp32: Model, int8: Model) -> None:
    texts = [BOOK.template(trigger, set(BOOK.chapter(trigger).facts) | ALWAYS) for trigger in BOOK.triggers]
    assert _perplexity(int8, texts) <= 1.01 * _perplexity(fp32, texts)


def test_parity_with_transformers_and_peft(base: Base, fp32: Model, folder: Path) -> None:
    from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
    from safetensors.torch import save_file
    from transformers import AutoModelForCausalLM

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        plain = AutoModelForCausalLM.from_pretrained(export_hf(base, folder / "hf"), dtype=torch.float32)
        targets = [name.split(".")[1] for name in LINEARS]
        peft = get_peft_model(plain, LoraConfig(r=8, lora_alpha=16, target_modules=targets, task_type="CAUSAL_LM"))
    torch.manual_seed(0)
    for name, value in peft.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(value, std=0.02)
    meta = {"base_sha256": base.sha256, "rank": "8", "alpha": "16"}
    save_file({k: v.contiguous() for k, v in get_peft_model_state_dict(peft).items()}, str(folder / "a.safetensors"), meta)
    adapter = adapters.read(folder / "a.safetensors", fp32.shape, fp32.base_sha256, fp32.rank)
    texts = ["Subject: Welcome back to {shop_name}", "Your {product_1} may be running low, and a fresh bag is easy to add."]
    cache = Cache(fp32, 2)
    rows = [list(fp32.words.encode(text)) for text in texts]
    cache.adapt(0, adapter)
    for row in (0, 1):
        cache.chunk(row, rows[row])
    hidden = cache.step(np.array([11, 12]), np.array([True, True]))
    with torch.no_grad():
        theirs = peft(torch.tensor([[*rows[0], 11]])).logits[0, -1].numpy()
        with peft.disable_adapter():
            bare = peft(torch.tensor([[*rows[1], 12]])).logits[0, -1].numpy()
    assert np.abs(fp32.output @ hidden[0] - theirs).max() <= 1e-3
    assert np.abs(fp32.output @ hidden[1] - bare).max() <= 1e-3
    assert np.abs(theirs - bare).max() > 0.1


def test_the_house_adapter_in_the_graph_is_what_peft_makes_of_it(base: Base, folder: Path) -> None:
    from peft import LoraConfig, get_peft_model, set_peft_model_state_dict
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM

    tensors, meta = read_safetensors(HOUSE)
    assert HOUSE.stat().st_size < 12e6 and meta["base_sha256"] == fingerprint(locate(), None)
    model = Model(build(load(locate()), folder / "house", "fp32", rank=8, max_len=64), 1)
    assert model.base_sha256 == fingerprint(locate()) != base.sha256
    layers = sorted({int(name.split(".layers.")[1].split(".")[0]) for name in tensors})
    rank, alpha = int(meta["rank"]), int(meta["alpha"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        plain = AutoModelForCausalLM.from_pretrained(export_hf(base, folder / "bare"), dtype=torch.float32)
        targets = [name.split(".")[1] for name in LINEARS]
        peft = get_peft_model(plain, LoraConfig(r=rank, lora_alpha=alpha, target_modules=targets, layers_to_transform=layers))
    set_peft_model_state_dict(peft, {name: tensor.float() for name, tensor in load_file(HOUSE).items()})
    tokens = list(model.words.encode("Trigger: welcome, warm\nGoods: books\n\nSubject: Welcome to {shop_name}"))
    with torch.no_grad():
        theirs = peft(torch.tensor([tokens])).logits[0, -1].numpy()
        with peft.disable_adapter():
            bare = peft(torch.tensor([tokens])).logits[0, -1].numpy()
    assert np.abs(model.output @ Cache(model, 1).chunk(0, tokens) - theirs).max() <= 1e-3
    assert np.abs(theirs - bare).max() > 0.1


def test_mails_pass_the_guard_and_are_the_same_in_any_mix(int8: Model) -> None:
    engine = Engine(int8, rows=4)
    slots = {"product_1", "order_date"}
    prompt = Prompt("replenishment", "warm", "en", "regular", "coffee_tea", ("regular",), tuple(sorted(slots)))
    tokens = int8.words.encode(render(prompt))

    def walk(seed: int) -> Guided:
        return Guided(int8.words, BOOK, "replenishment", "warm", slots, "coffee_tea", ("regular",), seed=seed)

    try:
        started = time.perf_counter()
        together = [f.result(120) for f in [engine.submit(Request(tokens, lambda s=s: walk(s))) for s in range(4)]]
        print(f"{sum(w.tokens for w in together) / (time.perf_counter() - started):.0f} tokens/s")
        alone = engine.submit(Request(tokens, lambda: walk(2))).result(60)
    finally:
        engine.close()
    assert alone.text == together[2].text
    for written in together:
        assert guard.passes(guard.check(written.text, slots | ALWAYS, "replenishment")), written.text
