"""A base model that is none is refused with one line that names it, before a graph is built from it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from models.writer import locate
from schemas.config import Settings, WriterSettings
from schemas.errors import ModelError
from streams.writer.stage import open_model
from tests.tiny_model import tiny

Spoil = Callable[[Path], object]


def config(**changes: Any) -> Spoil:
    def spoil(folder: Path) -> None:
        file = folder / "config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | changes))

    return spoil


def holding(name: str, data: bytes) -> Spoil:
    return lambda folder: (folder / name).write_bytes(data)


def cut(name: str, by: int) -> Spoil:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:-by])


def weights(name: str, change: Callable[[np.ndarray[Any, Any]], np.ndarray[Any, Any] | None]) -> Spoil:
    def spoil(folder: Path) -> None:
        file = folder / "model.safetensors"
        tensors = load_file(str(file))
        changed = change(tensors.pop(name))
        save_file(tensors if changed is None else tensors | {name: changed}, str(file))

    return spoil


def with_nan(tensor: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    tensor[0, 0] = np.nan
    return tensor


UP = "model.layers.0.mlp.up_proj.weight"
BAD: dict[str, tuple[Spoil, str]] = {
    "gone": (shutil.rmtree, "neither a .gguf file nor a folder"),
    "no config": (lambda folder: (folder / "config.json").unlink(), "neither a .gguf file nor a folder"),
    "another family": (config(model_type="gpt2"), "model_type is 'gpt2'"),
    "config torn": (cut("config.json", 9), "can't be read"),
    "config no object": (holding("config.json", b"[]"), "can't be read"),
    "config of words": (config(num_hidden_layers="two"), "can't be read"),
    "config without an end": (config(eos_token_id=None), "eos_token_id"),
    "config of another size": (config(vocab_size=99_999), "model.embed_tokens.weight is missing or of another shape"),
    "weights torn": (cut("model.safetensors", 64), "is torn"),
    "weights none": (holding("model.safetensors", b"\x03\0\0\0\0\0\0\0[1]"), "can't be read"),
    "a weight missing": (weights("model.norm.weight", lambda _: None), "model.norm.weight is missing"),
    "a weight of another width": (weights(UP, lambda w: np.ascontiguousarray(w[:, :32])), f"{UP} is missing or of another shape"),
    "a weight not finite": (weights(UP, with_nan), f"{UP} holds values that aren't finite"),
    "tokenizer torn": (cut("tokenizer.json", 900), "can't be read"),
}


@pytest.mark.parametrize("fault", BAD)
def test_it_is_refused_in_one_line_that_names_it(tmp_path: Path, fault: str) -> None:
    spoil, told = BAD[fault]
    folder = Path(shutil.copytree(tiny(), tmp_path / "model"))
    spoil(folder)
    said = refusal(folder, tmp_path)
    assert told in said and str(folder) in said and "\n" not in said


def test_a_gguf_file_that_was_cut_short_is_refused(tmp_path: Path) -> None:
    cut_short = tmp_path / "model.gguf"
    with locate().open("rb") as whole:
        cut_short.write_bytes(whole.read(1 << 20))
    said = refusal(cut_short, tmp_path)
    assert "can't be read" in said and str(cut_short) in said and "\n" not in said


def refusal(path: Path, home: Path) -> str:
    with pytest.raises(ModelError) as caught:
        open_model(Settings(home=str(home), writer=WriterSettings(base_model=str(path), threads=1)))
    return str(caught.value)
