"""A decoder of any size with random weights, as exporters leave them, written straight into a data file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

import numpy as np
import onnx
from onnx import TensorProto, helper

from burnish.benchmarks.layered import Layers

WIDTH, INNER, HEADS, VOCABULARY = 2048, 5504, 16, 4000
_PIECE: Final = 1 << 22  # values made at once


def layers_for(size: float) -> int:
    """How many layers have about that many bytes of weights; two at least."""
    of_one, others = (4 * sum(map(_count, each.values())) for each in (_weights(0), _around()))
    return max(2, round((size - others) / of_one))


def make_decoder(path: Path, layers: int) -> int:
    """Write `path` and `NAME.data` beside it: `ids` [batch, sequence] -> `logits`; in little memory.

    Returns:
        Bytes of its weights.
    """
    shapes = dict(_all_shapes(layers))
    writer = _Decoder()
    value = writer.node("Gather", "embed", "ids")
    mask = writer.causal("ids")
    for layer in range(layers):
        value = writer.layer_with(value, f"layers.{layer}.", mask)
    logits = writer.node("MatMul", writer.rms_norm(value, "norm"), "head")
    writer.nodes.append(helper.make_node("Identity", [logits], ["logits"], name="last"))
    data = path.with_name(f"{path.stem}.data")
    tensors = _write(data, shapes)
    ids = helper.make_tensor_value_info("ids", TensorProto.INT64, ["batch", "sequence"])
    out = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", "sequence", VOCABULARY])
    graph = helper.make_graph(writer.nodes, "decoder", [ids], [out], tensors)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    return data.stat().st_size


def _count(shape: tuple[int, ...]) -> int:
    return int(np.prod(shape))


def _around() -> Mapping[str, tuple[int, ...]]:
    return {"embed": (VOCABULARY, WIDTH), "norm": (WIDTH,), "head": (WIDTH, VOCABULARY)}


def _weights(layer: int) -> Mapping[str, tuple[int, ...]]:
    at = f"layers.{layer}."
    return {
        **{f"{at}{name}": (WIDTH, WIDTH) for name in ("q", "k", "v", "o")},
        f"{at}gate": (WIDTH, INNER), f"{at}up": (WIDTH, INNER), f"{at}down": (INNER, WIDTH),
        f"{at}norm1": (WIDTH,), f"{at}norm2": (WIDTH,),
    }  # fmt: skip


def _all_shapes(layers: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield from _around().items()
    for layer in range(layers):
        yield from _weights(layer).items()


def _write(data: Path, shapes: Mapping[str, tuple[int, ...]]) -> list[TensorProto]:
    """Write random weights, scaled by what they sum over; return tensors that refer to them."""
    rng, tensors, at = np.random.default_rng(0), [], 0
    with data.open("wb") as file:
        for name, shape in shapes.items():
            scale = np.float32(1 / np.sqrt(shape[0]))
            for start in range(0, _count(shape), _PIECE):
                size = min(_PIECE, _count(shape) - start)
                file.write((rng.standard_normal(size, np.float32) * scale).tobytes())
            tensor = TensorProto(
                name=name, data_type=TensorProto.FLOAT, dims=shape, data_location=TensorProto.EXTERNAL
            )
            entries = {"location": data.name, "offset": at, "length": 4 * _count(shape)}
            for key, value in entries.items():
                tensor.external_data.add(key=key, value=str(value))
            at += 4 * _count(shape)
            tensors.append(tensor)
    return tensors


class _Decoder(Layers):
    """Decoder layers: norms, causal attention and SwiGLU in steps."""

    def rms_norm(self, value: str, weight: str) -> str:
        """RMSNormalization, written out."""
        mean = self.node(
            "ReduceMean", self.node("Pow", value, self.constant(2)), self.constant([-1], np.int64)
        )
        root = self.node("Sqrt", self.node("Add", mean, self.constant(1e-6)))
        return self.node("Mul", self.node("Div", value, root), weight)

    def causal(self, ids: str) -> str:
        """What is added to scores: 0 for the past, much less than it for the future."""
        size = self.size(ids, 1)
        lowest = helper.make_tensor("lowest", TensorProto.FLOAT, [1], [-1e9])
        full = self.node("ConstantOfShape", self.node("Concat", size, size, axis=0), value=lowest)
        return self.node("Trilu", full, self.constant(1, np.int64), upper=1)

    def split(self, value: str, weight: str, perm: list[int]) -> str:
        """A projection, its heads apart."""
        target = self.target(value, HEADS, WIDTH // HEADS)
        return self.node(
            "Transpose", self.node("Reshape", self.node("MatMul", value, weight), target), perm=perm
        )

    def layer_with(self, value: str, at: str, mask: str) -> str:
        """One decoder layer, with weights of its own."""
        inner = self.rms_norm(value, f"{at}norm1")
        query, key = self.split(inner, f"{at}q", [0, 2, 1, 3]), self.split(inner, f"{at}k", [0, 2, 3, 1])
        scaled = self.node("Div", self.node("MatMul", query, key), self.constant(np.sqrt(WIDTH // HEADS)))
        chances = self.node("Softmax", self.node("Add", scaled, mask), axis=-1)
        mixed = self.node("MatMul", chances, self.split(inner, f"{at}v", [0, 2, 1, 3]))
        mixed = self.node("Transpose", mixed, perm=[0, 2, 1, 3])
        together = self.node("Reshape", mixed, self.target(inner, WIDTH))
        value = self.node("Add", value, self.node("MatMul", together, f"{at}o"))
        inner = self.rms_norm(value, f"{at}norm2")
        gate = self.node("MatMul", inner, f"{at}gate")
        gate = self.node("Mul", gate, self.node("Sigmoid", gate))
        product = self.node("Mul", gate, self.node("MatMul", inner, f"{at}up"))
        return self.node("Add", value, self.node("MatMul", product, f"{at}down"))
