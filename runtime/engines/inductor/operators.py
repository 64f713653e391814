"""The ONNX operators that batchful graphs are made of, each as torch computes it."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from cleave.errors import EngineError, MissingPackage

try:
    import torch
    import torch.nn.functional as F
except ImportError:
    raise MissingPackage("torch", "gpu", "the engine inductor") from None

_DTYPES = {
    onnx.TensorProto.FLOAT: torch.float32,
    onnx.TensorProto.FLOAT16: torch.float16,
    onnx.TensorProto.BFLOAT16: torch.bfloat16,
    onnx.TensorProto.INT64: torch.int64,
    onnx.TensorProto.INT32: torch.int32,
}


class Unsupported(Exception):
    """The operator is used in a way that has no translation; the message says which."""


@dataclass(frozen=True, slots=True)
class Call:
    """One node: its attributes, and those of its inputs whose values are known beforehand."""

    attributes: Mapping[str, Any]
    constants: tuple[np.ndarray[Any, Any] | None, ...]

    def ints(self, position: int, what: str) -> list[int]:
        """Input `position` as whole numbers, which has to be a constant."""
        if position >= len(self.constants) or (constant := self.constants[position]) is None:
            raise Unsupported(f"its {what} is no constant")
        return [int(value) for value in constant.reshape(-1)]


Translation = Callable[..., Any]
"""Called with (Call, *inputs); the inputs are tensors, or what stands for them while tracing."""


def _gemm(call: Call, x: Any, weight: Any, bias: Any = None) -> Any:
    scales = call.attributes.get("alpha", 1.0), call.attributes.get("beta", 1.0)
    if scales != (1.0, 1.0) or call.attributes.get("transA", 0):
        raise Unsupported("alpha and beta must be 1 and transA 0")
    return F.linear(x, weight if call.attributes.get("transB", 0) else weight.t(), bias)


def rms_norm(x: Any, scale: Any, epsilon: float) -> Any:
    """As transformers: normed in float32, rounded, then multiplied by the weight."""
    wide = x.to(torch.float32)
    variance = wide.pow(2).mean(-1, keepdim=True)
    return (wide * torch.rsqrt(variance + epsilon)).to(x.dtype) * scale


def _rms_normalization(call: Call, x: Any, scale: Any) -> Any:
    if call.attributes.get("axis", -1) != -1 or call.attributes.get("stash_type", 1) != 1:
        raise Unsupported("axis must be -1 and stash_type 1")
    return _as_node(rms_norm, x, scale, call.attributes.get("epsilon", 1e-5))


def _as_node(function: Callable[..., Any], *inputs: Any) -> Any:
    """Call a function that is to be one node of the traced graph, so that it can be recognised there."""
    if isinstance(inputs[0], torch.fx.Proxy):
        return inputs[0].tracer.create_proxy("call_function", function, inputs, {})
    return function(*inputs)


def _reshape(call: Call, x: Any, _: Any) -> Any:
    if call.attributes.get("allowzero", 0):
        raise Unsupported("allowzero must be 0")
    sizes = call.ints(1, "shape")
    return x.reshape([x.size(axis) if size == 0 else size for axis, size in enumerate(sizes)])


def _gather(call: Call, x: Any, index: Any) -> Any:
    if call.attributes.get("axis", 0) != 0:
        raise Unsupported("axis must be 0")
    return F.embedding(index, x)


def _cast(call: Call, x: Any) -> Any:
    target = call.attributes["to"]
    if target not in _DTYPES:
        raise Unsupported(f"a cast to {onnx.TensorProto.DataType.Name(target)} has no translation")
    return x.to(_DTYPES[target])


def _gelu(call: Call, x: Any) -> Any:
    approximate = call.attributes.get("approximate", b"none")
    return F.gelu(x, approximate=approximate.decode())


def _concat(call: Call, *parts: Any) -> Any:
    return torch.cat(parts, dim=call.attributes["axis"])


def _split(call: Call, x: Any, sizes: Any = None) -> Any:
    return torch.split(x, call.ints(1, "split"), dim=call.attributes.get("axis", 0))


def _slice(call: Call, x: Any, *_: Any) -> Any:
    starts, ends, axes = (call.ints(place, name) for place, name in ((1, "starts"), (2, "ends"), (3, "axes")))
    steps = call.ints(4, "steps") if len(call.constants) > 4 else [1] * len(axes)
    if set(steps) != {1}:
        raise Unsupported("steps must be 1")
    for start, end, axis in zip(starts, ends, axes, strict=True):
        x = x.narrow(axis, start, end - start) if 0 <= start < end < 2**31 else _tail(x, axis, start, end)
    return x


def _tail(x: Any, axis: int, start: int, end: int) -> Any:
    if start < 0 or end < 2**31:
        raise Unsupported("starts and ends must count from the front")
    return x.narrow(axis, start, x.size(axis) - start)


def _transpose(call: Call, x: Any) -> Any:
    return x.permute(list(call.attributes["perm"]))


def _plain(function: Callable[..., Any]) -> Translation:
    return lambda _, *inputs: function(*inputs)


TRANSLATIONS: dict[str, Translation] = {
    "Add": _plain(operator.add),
    "Cast": _cast,
    "Concat": _concat,
    "Div": _plain(operator.truediv),
    "Gather": _gather,
    "Gelu": _gelu,
    "Gemm": _gemm,
    "Identity": lambda _, x: x,
    "MatMul": _plain(torch.matmul),
    "Mul": _plain(operator.mul),
    "Neg": _plain(torch.neg),
    "RMSNormalization": _rms_normalization,
    "Reshape": _reshape,
    "Sigmoid": _plain(torch.sigmoid),
    "Slice": _slice,
    "Split": _split,
    "Sub": _plain(operator.sub),
    "Tanh": _plain(torch.tanh),
    "Transpose": _transpose,
}
"""Operators of ONNX's own domain -> what computes them."""


def translate(node: onnx.NodeProto, inputs: list[Any], constants: Mapping[str, np.ndarray[Any, Any]]) -> Any:
    """What `node` computes of `inputs`; a tuple where it has several outputs.

    `constants` are the values that are known beforehand, by name. Raises EngineError for an operator
    without a translation, or one that is used in a way that has none.
    """
    translation = TRANSLATIONS.get(node.op_type) if not node.domain else None
    if translation is None:
        raise EngineError(
            f"operator {node.domain + '::' if node.domain else ''}{node.op_type} of node {node.name} "
            f"has no translation for the engine inductor; there are: {', '.join(TRANSLATIONS)}"
        )
    attributes = {entry.name: onnx.helper.get_attribute_value(entry) for entry in node.attribute}
    call = Call(attributes, tuple(constants.get(name) for name in node.input))
    try:
        return translation(call, *inputs)
    except Unsupported as error:
        raise EngineError(
            f"operator {node.op_type} of node {node.name} has no translation for the engine inductor "
            f"as it is used: {error}"
        ) from None


def constant_of(tensor: onnx.TensorProto) -> np.ndarray[Any, Any]:
    """The value of an initializer."""
    return numpy_helper.to_array(tensor)
