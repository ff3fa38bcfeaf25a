"""One ONNX graph for all clusters: written node by node from numpy, each row of a batch with its own LoRA.

Inputs ``input_ids`` i64[B,T]; ``seqlens_k`` i32[B], the row's tokens up to and
with this chunk, less one; ``total`` i32 scalar, the largest of those plus one;
``last`` i64[B,1], where in the chunk the row's last token stands;
``past.l.k/v`` [B,kv,max,head], bound to the same memory as ``present.l.k/v``;
``A.l.g`` [B,in,r'] and ``B.l.g`` [B,r',out], zeros where a row has no adapter.
Output ``hidden`` f32[B,width]: after the last norm, at ``last``.

``plain.onnx`` is the same graph without the adapters' inputs, over the same
weights: for rows that have none, a fifth faster and equal to the last bit.

The language model head stands in a second graph (``head.onnx``): guided
decoding compares a handful of tokens and needs their rows alone, which spares
a fifth of a step.

Precisions: ``int8`` (CPU, blocks of 32, held-out perplexity within 1 % of
fp32), ``fp32`` (CPU, for parity), ``fp16``/``bf16`` (CUDA, unquantised: its
GroupQueryAttention knows no fp32; written, never run on a card).
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from models.writer.base import HOUSE, Base, Shape, fingerprint, load, shape_dict
from schemas.errors import ModelError

Precision = Literal["int8", "fp32", "fp16", "bf16"]
GROUPS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("qkv", ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")),
    ("o", ("self_attn.o_proj",)),
    ("gu", ("mlp.gate_proj", "mlp.up_proj")),
    ("down", ("mlp.down_proj",)),
)
BLOCK = 32  # weights that share a scale
TOP_K = 40  # candidates that the head hands out
VERSION = 4  # of this builder: a change makes cached graphs stale
_TYPES = {"int8": TensorProto.FLOAT, "fp32": TensorProto.FLOAT, "fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}
_INLINE = 1024  # bytes; smaller tensors stand in the graph itself
_ALIGN = 4096  # so that the runtime can map the file


def precision_for(device: str = "auto") -> Precision:
    """``int8``: with or without VNNI as fast end to end as fp32, at less than half the memory.

    (A single fp32 product is 1.4 times as fast without VNNI while its weights
    stay in the cache; a whole mail is not.) Raises ModelError for ``cuda``,
    which the engine doesn't drive yet.
    """
    if device == "cuda":
        raise ModelError("writer.device cuda: the engine runs on the CPU alone so far: set it to auto or cpu")
    return "int8"


def wide(shape: Shape, group: str) -> tuple[int, tuple[int, ...]]:
    """A fused group's input width and its parts' output widths."""
    q, kv = shape.heads * shape.head, shape.kv_heads * shape.head
    return {
        "qkv": (shape.width, (q, kv, kv)),
        "o": (q, (shape.width,)),
        "gu": (shape.width, (shape.inner, shape.inner)),
        "down": (shape.inner, (shape.width,)),
    }[group]


def prepare(
    path: Path, home: Path, precision: Precision | None = None, rank: int = 8, max_len: int = 320, house: Path | None = HOUSE
) -> Path:
    """The folder ``home/<key>`` with the graphs of a base model, built where it isn't there yet (seconds). Raises ModelError.

    No ``precision``: the one that suits the machine. It is written beside and renamed, so a half-written one is never used.
    """
    precision = precision or precision_for()
    sha = fingerprint(path, house)
    folder = home / f"{sha[:16]}-{precision}-r{rank}-m{max_len}-v{VERSION}"
    if (folder / "meta.json").is_file():
        return folder
    return build(load(path, house), folder, precision, rank, max_len)


def build(base: Base, folder: Path, precision: Precision = "int8", rank: int = 8, max_len: int = 320) -> Path:
    """Write the graphs, the output matrix, the tokenizer and ``meta.json`` into ``folder``."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        beside = Path(tempfile.mkdtemp(prefix=".building-", dir=folder.parent))
        try:
            _decoder(base, beside, precision, rank, max_len)
            _without_adapters(beside)
            _head(base, beside, precision)
            np.save(beside / "output.npy", _output(base))
            base.tokenizer.save(str(beside / "tokenizer.json"))
            meta = {"base_sha256": base.sha256, "precision": precision, "rank": rank, "max_len": max_len, "shape": shape_dict(base.shape)}
            (beside / "meta.json").write_text(json.dumps(meta))
            try:
                os.replace(beside, folder)
            except OSError:
                if not (folder / "meta.json").is_file():  # else another process was first, and its graph is as good
                    raise
        finally:
            shutil.rmtree(beside, ignore_errors=True)
    except OSError as error:
        raise ModelError(f"{folder}: can't write the writer's graph ({error}): make room, or set home elsewhere") from error
    return folder


def _output(base: Base) -> NDArray[np.float32]:
    return base.weights["model.embed_tokens.weight" if base.shape.tied else "lm_head.weight"]


class _File:
    """A graph under construction whose large tensors go to one file beside it."""

    def __init__(self, folder: Path, name: str, precision: Precision) -> None:
        self.folder, self.name, self.precision = folder, name, precision
        self.nodes: list[Any] = []
        self.tensors: list[Any] = []
        self.type = _TYPES[precision]
        self._data = (folder / f"{name}.data").open("wb")

    def op(self, kind: str, inputs: list[str], outputs: list[str] | str, domain: str = "", **attributes: Any) -> str:
        names = [outputs] if isinstance(outputs, str) else outputs
        self.nodes.append(helper.make_node(kind, inputs, names, name=next(n for n in names if n), domain=domain, **attributes))
        return names[0]

    def tensor(self, name: str, value: NDArray[Any], kind: int | None = None) -> str:
        """An initializer; floats take the graph's type unless ``kind`` says otherwise."""
        if value.dtype == np.float32 and kind is None:
            kind = self.type
        if kind is None:
            kind = helper.np_dtype_to_tensor_dtype(value.dtype)
        raw = np.ascontiguousarray(value.astype(helper.tensor_dtype_to_np_dtype(kind))).tobytes()
        made = TensorProto(name=name, data_type=kind, dims=value.shape)
        if len(raw) < _INLINE:
            made.raw_data = raw
        else:
            self._data.write(b"\0" * (-self._data.tell() % _ALIGN))
            made.data_location = TensorProto.EXTERNAL
            for key, entry in (("location", f"{self.name}.data"), ("offset", self._data.tell()), ("length", len(raw))):
                made.external_data.add(key=key, value=str(entry))
            self._data.write(raw)
        self.tensors.append(made)
        return name

    def linear(self, name: str, x: str, weight: NDArray[np.float32]) -> str:
        """``x @ weight.T``; int8 in blocks of 32 along the input, symmetric around 128."""
        out, into = weight.shape
        if self.precision != "int8":
            return self.op("MatMul", [x, self.tensor(f"{name}.w", weight.T)], name)
        blocks = weight.reshape(out, into // BLOCK, BLOCK)
        scales = (np.abs(blocks).max(2) / 127).astype(np.float32)
        whole = np.rint(blocks / np.maximum(scales, 1e-12)[..., None]) + 128
        q = self.tensor(f"{name}.q", whole.astype(np.uint8))
        s = self.tensor(f"{name}.s", scales)
        attributes = {"K": into, "N": out, "bits": 8, "block_size": BLOCK, "accuracy_level": 4}
        return self.op("MatMulNBits", [x, q, s], name, "com.microsoft", **attributes)

    def close(self, inputs: list[Any], outputs: list[Any]) -> None:
        self._data.close()
        graph = helper.make_graph(self.nodes, "mailtide", inputs, outputs, self.tensors)
        opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
        (self.folder / f"{self.name}.onnx").write_bytes(model.SerializeToString())


def _decoder(base: Base, folder: Path, precision: Precision, rank: int, max_len: int) -> None:
    s, w = base.shape, base.weights
    g = _File(folder, "model", precision)
    info = helper.make_tensor_value_info
    inputs = [
        info("input_ids", TensorProto.INT64, ["B", "T"]),
        info("seqlens_k", TensorProto.INT32, ["B"]),
        info("total", TensorProto.INT32, []),
        info("last", TensorProto.INT64, ["B", 1]),
    ]
    outputs = [info("hidden", TensorProto.FLOAT, ["B", s.width])]
    for layer in range(s.layers):
        for kv in "kv":
            size = ["B", s.kv_heads, max_len, s.head]
            inputs.append(info(f"past.{layer}.{kv}", g.type, size))
            outputs.append(info(f"present.{layer}.{kv}", g.type, size))
        for group, members in GROUPS:
            into, outs = wide(s, group)
            inputs.append(info(f"A.{layer}.{group}", g.type, ["B", into, rank * len(members)]))
            inputs.append(info(f"B.{layer}.{group}", g.type, ["B", rank * len(members), sum(outs)]))

    angles = np.outer(np.arange(max_len), 1.0 / s.theta ** (np.arange(0, s.head, 2) / s.head))
    cos, sin = g.tensor("cos", np.cos(angles).astype(np.float32)), g.tensor("sin", np.sin(angles).astype(np.float32))
    x = _embed(g, w["model.embed_tokens.weight"])
    norm: dict[str, Any] = {"epsilon": s.epsilon}
    mlp = ""  # the last layer's output, which the next norm adds

    def lora(layer: int, group: str, x: str, weights: list[NDArray[np.float32]]) -> str:
        name = f"l{layer}.{group}"
        plain = g.linear(name, x, np.concatenate(weights))
        down = g.op("MatMul", [x, f"A.{layer}.{group}"], f"{name}.down")
        return g.op("Add", [plain, g.op("MatMul", [down, f"B.{layer}.{group}"], f"{name}.up")], f"{name}.sum")

    for layer in range(s.layers):
        at = f"model.layers.{layer}."
        scale = g.tensor(f"l{layer}.n1.w", w[at + "input_layernorm.weight"])
        if layer == 0:
            n = g.op("SimplifiedLayerNormalization", [x, scale], "l0.n1", axis=-1, stash_type=1, **norm)
        else:
            n, x = f"l{layer}.n1", f"l{layer}.x"
            g.op("SkipSimplifiedLayerNormalization", [f"l{layer - 1}.mid", mlp, scale], [n, "", "", x], "com.microsoft", **norm)
        qkv = lora(layer, "qkv", n, [w[f"{at}{m}.weight"] for m in GROUPS[0][1]])
        attention = f"l{layer}.attn"
        g.op(
            "GroupQueryAttention",
            [qkv, "", "", f"past.{layer}.k", f"past.{layer}.v", "seqlens_k", "total", cos, sin],
            [attention, f"present.{layer}.k", f"present.{layer}.v"],
            "com.microsoft",
            num_heads=s.heads,
            kv_num_heads=s.kv_heads,
            do_rotary=1,
            rotary_interleaved=0,
            scale=float(s.head**-0.5),
        )
        o = lora(layer, "o", attention, [w[at + "self_attn.o_proj.weight"]])
        n2, mid = f"l{layer}.n2", f"l{layer}.mid"
        scale2 = g.tensor(f"l{layer}.n2.w", w[at + "post_attention_layernorm.weight"])
        g.op("SkipSimplifiedLayerNormalization", [x, o, scale2], [n2, "", "", mid], "com.microsoft", **norm)
        gu = lora(layer, "gu", n2, [w[at + "mlp.gate_proj.weight"], w[at + "mlp.up_proj.weight"]])
        gate, up = f"l{layer}.gate", f"l{layer}.upper"
        g.op("Split", [gu], [gate, up], axis=-1, num_outputs=2)
        silu = g.op("QuickGelu", [gate], f"l{layer}.silu", "com.microsoft", alpha=1.0)
        mlp = lora(layer, "down", g.op("Mul", [silu, up], f"l{layer}.mul"), [w[at + "mlp.down_proj.weight"]])
    final = g.tensor("norm.w", w["model.norm.weight"])
    g.op("SkipSimplifiedLayerNormalization", [f"l{s.layers - 1}.mid", mlp, final], ["normed"], "com.microsoft", **norm)
    g.op("Cast", [g.op("GatherND", ["normed", "last"], "picked", batch_dims=1)], "hidden", to=TensorProto.FLOAT)
    g.close(inputs, outputs)


def _without_adapters(folder: Path) -> None:
    """``plain.onnx`` from ``model.onnx``; both read ``model.data``."""
    model = onnx.load(folder / "model.onnx", load_external_data=False)
    graph = model.graph
    theirs = [node for node in graph.node if any(name[:2] in ("A.", "B.") for name in node.input)]
    made = {node.output[0] for node in theirs}
    sums = {node.output[0]: node.input[0] for node in graph.node if node.op_type == "Add" and made & set(node.input)}
    for node in graph.node:
        for place, name in enumerate(node.input):
            node.input[place] = sums.get(name, name)
    for node in [node for node in graph.node if node.output[0] in made | sums.keys()]:
        graph.node.remove(node)
    for value in [value for value in graph.input if value.name[:2] in ("A.", "B.")]:
        graph.input.remove(value)
    (folder / "plain.onnx").write_bytes(model.SerializeToString())


def _embed(g: _File, matrix: NDArray[np.float32]) -> str:
    """Rows of the embedding; int8 with a scale for each row where the graph is int8."""
    if g.precision != "int8":
        return g.op("Gather", [g.tensor("embed", matrix), "input_ids"], "x0", axis=0)
    scale = np.maximum(np.abs(matrix).max(1, keepdims=True), 1e-12).astype(np.float32) / 127
    whole = g.tensor("embed.q", np.rint(matrix / scale).astype(np.int8))
    rows = g.op("Cast", [g.op("Gather", [whole, "input_ids"], "embed.rows", axis=0)], "embed.f", to=TensorProto.FLOAT)
    scales = g.op("Gather", [g.tensor("embed.s", scale), "input_ids"], "embed.scales", axis=0)
    return g.op("Mul", [rows, scales], "x0")


def _head(base: Base, folder: Path, precision: Precision) -> None:
    """``hidden`` f32[B,width] and ``ban`` f32[vocab] (0, or very negative) to the ``TOP_K`` best tokens' logits and ids."""
    s = base.shape
    g = _File(folder, "head", precision)
    info = helper.make_tensor_value_info
    x = g.op("Cast", ["hidden"], "x", to=g.type)
    logits = g.op("Cast", [g.linear("logits.raw", x, _output(base))], "logits", to=TensorProto.FLOAT)
    k = g.tensor("k", np.array([min(TOP_K, s.vocab)], np.int64))
    g.op("TopK", [g.op("Add", [logits, "ban"], "allowed"), k], ["top_v", "top_i"], axis=-1)
    g.close(
        [info("hidden", TensorProto.FLOAT, ["B", s.width]), info("ban", TensorProto.FLOAT, [s.vocab])],
        [info("top_v", TensorProto.FLOAT, ["B", min(TOP_K, s.vocab)]), info("top_i", TensorProto.INT64, ["B", min(TOP_K, s.vocab)])],
    )


def read_meta(folder: Path) -> dict[str, Any]:
    """What ``build`` wrote down. Raises ModelError for a folder that it didn't finish."""
    try:
        return dict(json.loads((folder / "meta.json").read_text()))
    except (OSError, ValueError) as error:
        raise ModelError(f"{folder}: no finished graph there ({error}): remove the folder, it is built again") from error


def check(folder: Path) -> None:
    """Run the checker of onnx itself, for tests."""
    onnx.checker.check_model(str(folder / "model.onnx"))
