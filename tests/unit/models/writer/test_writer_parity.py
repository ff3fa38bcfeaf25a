"""The graph against transformers + PEFT: ragged rows, mixed adapters, a row replaced in mid-flight."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import numpy as np
import pytest

from models.writer import Cache, Model, adapters, export_hf, fingerprint, load, prepare
from schemas.errors import ArtifactError, ModelError
from tests.tiny_model import lora, tiny

torch = pytest.importorskip("torch")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return Model(prepare(tiny(), tmp_path_factory.mktemp("writer"), "fp32", rank=8, max_len=320, house=None), 1)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory, model: Model) -> list[Path]:
    folder = tmp_path_factory.mktemp("adapters")
    return [lora(folder / f"{seed}.safetensors", model.base_sha256, seed=seed) for seed in (1, 2, 3)]


class Reference:
    """transformers + PEFT, the same files."""

    def __init__(self, folder: Path, files: list[Path]) -> None:
        from peft import LoraConfig, get_peft_model
        from safetensors.torch import load_file
        from transformers import AutoModelForCausalLM

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            plain = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
            config = LoraConfig(r=4, lora_alpha=8, target_modules=[n.split(".")[1] for n in _linears()], task_type="CAUSAL_LM")
            self.peft = get_peft_model(plain, config, adapter_name="a0")
            for i in range(1, len(files)):
                self.peft.add_adapter(f"a{i}", config)
        state = self.peft.state_dict()
        for i, file in enumerate(files):
            for name, value in load_file(str(file)).items():
                state[name.replace("lora_A.weight", f"lora_A.a{i}.weight").replace("lora_B.weight", f"lora_B.a{i}.weight")].copy_(value)
        self.peft.eval()

    def last(self, tokens: list[int], adapter: int | None) -> np.ndarray:
        with torch.no_grad():
            if adapter is None:
                with self.peft.disable_adapter():
                    return self.peft(torch.tensor([tokens])).logits[0, -1].numpy()
            self.peft.set_adapter(f"a{adapter}")
            return self.peft(torch.tensor([tokens])).logits[0, -1].numpy()


def _linears() -> tuple[str, ...]:
    from models.writer.base import LINEARS

    return LINEARS


def test_mixed_adapters_ragged_rows_and_a_replaced_row_match_peft(model: Model, files: list[Path]) -> None:
    reference = Reference(tiny(), files)
    loaded = [adapters.read(f, model.shape, model.base_sha256, model.rank) for f in files]
    cache = Cache(model, 4)
    rng = np.random.default_rng(5)
    which: list[int | None] = [0, 1, None, 2]
    texts = [rng.integers(1, model.shape.vocab, n).tolist() for n in (5, 17, 9, 40)]
    worst = 0.0

    def compare(hidden: np.ndarray, row: int) -> None:
        nonlocal worst
        mine, theirs = model.output @ hidden, reference.last(texts[row], which[row])
        worst = max(worst, float(np.abs(mine - theirs).max()))
        assert mine.argmax() == theirs.argmax()

    for row, adapter in enumerate(which):
        cache.adapt(row, None if adapter is None else loaded[adapter])
        compare(cache.chunk(row, texts[row]), row)
    for turn in range(6):
        if turn == 3:  # row 1 is finished: another mail with another adapter takes its place, the others go on
            which[1], texts[1] = 2, rng.integers(1, model.shape.vocab, 11).tolist()
            cache.adapt(1, loaded[2])
            cache.length[1] = 0
            compare(cache.chunk(1, texts[1]), 1)
        token = rng.integers(1, model.shape.vocab, 4)
        hidden = cache.step(token, np.array([True, True, True, turn % 2 == 0]))
        for row in range(4):
            if row == 3 and turn % 2:
                continue
            texts[row].append(int(token[row]))
            compare(hidden[row], row)
    more = rng.integers(1, model.shape.vocab, 8).tolist()  # a forced stretch: many tokens behind a past
    texts[0] += more
    compare(cache.chunk(0, more), 0)
    assert worst <= 1e-3


def test_int8_stays_near_fp32_on_the_tiny_model(model: Model, tmp_path: Path) -> None:
    small = Model(prepare(tiny(), tmp_path, "int8", rank=8, house=None), 1)
    tokens = np.random.default_rng(0).integers(1, model.shape.vocab, 30).tolist()
    one, other = model.output @ Cache(model, 1).chunk(0, tokens), small.output @ Cache(small, 1).chunk(0, tokens)
    assert np.corrcoef(one, other)[0, 1] > 0.995


def test_export_loads_in_transformers_with_the_same_words(model: Model, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = export_hf(load(tiny(), house=None), tmp_path / "hf")
    tokens = model.words.encode("Subject: Your {product_1} is waiting")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = AutoModelForCausalLM.from_pretrained(folder)
        assert (
            tuple(AutoTokenizer.from_pretrained(folder)("Subject: Your {product_1} is waiting", add_special_tokens=False)["input_ids"])
            == tokens
        )
    with torch.no_grad():
        logits = theirs(torch.tensor([tokens])).logits[0, -1].numpy()
    assert np.abs(logits - model.output @ Cache(model, 1).chunk(0, tokens)).max() < 1e-3


def test_a_house_adapter_is_merged_and_names_the_base(model: Model, tmp_path: Path, files: list[Path]) -> None:
    raw = fingerprint(tiny(), None)
    house = lora(tmp_path / "house.safetensors", raw, seed=9)
    merged = load(tiny(), house)
    assert merged.sha256 == fingerprint(tiny(), house) != raw
    tokens = list(range(5, 25))
    folder = prepare(tiny(), tmp_path / "writer", "fp32", house=house)
    theirs = Reference(tiny(), [house]).last(tokens, 0)
    built = Model(folder, 1)
    assert np.abs(built.output @ Cache(built, 1).chunk(0, tokens) - theirs).max() < 1e-3
    foreign = lora(tmp_path / "foreign.safetensors", "0" * 64)
    with pytest.raises(ModelError, match="another base"):
        load(tiny(), foreign)


def test_a_finished_graph_is_reused_and_a_half_written_one_never_seen(tmp_path: Path) -> None:
    (tmp_path / ".building-dead").mkdir()
    one = prepare(tiny(), tmp_path, "fp32", house=None)
    stamp = (one / "model.onnx").stat().st_mtime_ns
    assert prepare(tiny(), tmp_path, "fp32", house=None) == one and (one / "model.onnx").stat().st_mtime_ns == stamp
    assert json.loads((one / "meta.json").read_text())["base_sha256"] == fingerprint(tiny(), None)
    with pytest.raises(ModelError, match="no finished graph"):
        Model(tmp_path / "nothing", 1)


@pytest.mark.parametrize("fault", ["sha", "base", "torn", "rank", "shape", "nan", "missing"])
def test_bad_adapters_are_refused(model: Model, files: list[Path], tmp_path: Path, fault: str) -> None:
    from safetensors.numpy import load_file, save_file

    file, sha = tmp_path / "bad.safetensors", ""
    tensors = load_file(str(files[0]))
    meta = {"base_sha256": model.base_sha256, "rank": "4", "alpha": "8"}
    name = next(n for n in tensors if n.endswith("q_proj.lora_B.weight"))
    if fault == "base":
        meta["base_sha256"] = "f" * 64
    elif fault == "rank":
        meta["rank"] = "64"
    elif fault == "shape":
        tensors[name] = tensors[name][:-1].copy()
    elif fault == "nan":
        tensors[name][0, 0] = np.nan
    elif fault == "missing":
        del tensors[name]
    save_file(tensors, str(file), meta)
    if fault == "sha":
        sha = "0" * 64
    elif fault == "torn":
        file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ArtifactError) as caught:
        adapters.read(file, model.shape, model.base_sha256, model.rank, sha)
    assert "\n" not in str(caught.value) and str(file) in str(caught.value)


def test_a_folder_that_is_no_model_is_refused_in_one_line(tmp_path: Path) -> None:
    from models.writer import locate

    with pytest.raises(ModelError, match=r"neither a \.gguf file nor a folder"):
        locate(str(tmp_path))
    (tmp_path / "x.gguf").write_bytes(b"not a model")
    with pytest.raises(ModelError, match="can't be read"):
        load(locate(str(tmp_path / "x.gguf")))
