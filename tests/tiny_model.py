"""A random llama of 2 layers with a byte-level tokenizer, as a Hugging Face folder: made in a second, no download."""

from __future__ import annotations

import functools
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from models.phrasebook.book import Book

CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "rope_theta": 10000.0,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": True,
    "max_position_embeddings": 512,
    "eos_token_id": 0,
    "bos_token_id": None,
    "hidden_act": "silu",
}


@functools.cache
def tiny() -> Path:
    """The folder, made once for each session."""
    return make(Path(tempfile.mkdtemp(prefix="mailtide-tiny-")))


def make(folder: Path, seed: int = 0) -> Path:
    """Write config.json, tokenizer.json and model.safetensors."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    book = Book.load()
    words = [clause.text for chapter in book.chapters.values() for clause in chapter.clauses]
    trainer = trainers.BpeTrainer(
        vocab_size=800, special_tokens=["<|end|>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(words, trainer)
    tokenizer.add_special_tokens([AddedToken("<|end|>", special=True)])
    tokenizer.save(str(folder / "tokenizer.json"))
    config = CONFIG | {"vocab_size": tokenizer.get_vocab_size()}
    (folder / "config.json").write_text(json.dumps(config))
    rng = np.random.default_rng(seed)
    width, kv, inner = 64, 32, 96
    sizes = {
        "self_attn.q_proj": (width, width),
        "self_attn.k_proj": (kv, width),
        "self_attn.v_proj": (kv, width),
        "self_attn.o_proj": (width, width),
        "mlp.gate_proj": (inner, width),
        "mlp.up_proj": (inner, width),
        "mlp.down_proj": (width, inner),
    }
    weights = {"model.embed_tokens.weight": rng.normal(0, 0.5, (config["vocab_size"], width)), "model.norm.weight": np.ones(width)}
    for layer in range(2):
        at = f"model.layers.{layer}."
        weights |= {at + n + ".weight": rng.normal(0, 0.15, size) for n, size in sizes.items()}
        weights |= {at + n + ".weight": 1 + rng.normal(0, 0.1, width) for n in ("input_layernorm", "post_attention_layernorm")}
    save_file({k: v.astype(np.float32) for k, v in weights.items()}, str(folder / "model.safetensors"), {"format": "pt"})
    return folder


def lora(file: Path, base_sha256: str, layers: int = 2, rank: int = 4, seed: int = 1, scale: float = 0.2, **meta: str) -> Path:
    """A random adapter in PEFT's format for the tiny model."""
    rng = np.random.default_rng(seed)
    sizes = {
        "self_attn.q_proj": (64, 64),
        "self_attn.k_proj": (32, 64),
        "self_attn.v_proj": (32, 64),
        "self_attn.o_proj": (64, 64),
        "mlp.gate_proj": (96, 64),
        "mlp.up_proj": (96, 64),
        "mlp.down_proj": (64, 96),
    }
    tensors = {}
    for layer in range(layers):
        for name, (out, into) in sizes.items():
            at = f"base_model.model.model.layers.{layer}.{name}."
            tensors[at + "lora_A.weight"] = rng.normal(0, scale, (rank, into)).astype(np.float32)
            tensors[at + "lora_B.weight"] = rng.normal(0, scale, (out, rank)).astype(np.float32)
    save_file(tensors, str(file), {"base_sha256": base_sha256, "rank": str(rank), "alpha": str(2 * rank)} | meta)
    return file
