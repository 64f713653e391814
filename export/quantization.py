"""What of an artifact is quantised, and how: the record of it in the manifest. It needs no torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from cleave.errors import ExportError
from cleave.export.quantized import GROUP_SIZES

METHODS = ("int8", "int4")
DEFAULT_GROUP_SIZE = 32
SCALE, ZERO_POINT = "_scale", "_zero_point"
"""What the tensors beside a quantised one are called: its own name and one of these."""

Described = tuple[str, str, tuple[int, ...]]
"""Name, dtype and shape of a tensor, as safetensors has them."""


@dataclass(frozen=True, slots=True)
class QuantizedTensor:
    """Matrices that read the same input, stored one below the other as one."""

    name: str
    """In weights.safetensors: "model.layers.0.self_attn.q_proj+k_proj+v_proj.weight"."""
    members: tuple[tuple[str, int], ...]
    """Each matrix as the checkpoint calls it, and its outputs."""
    inputs: int
    order: str | None = None
    """The tensor that says where each stored input is in the model (act-order); None: in the same place."""

    @property
    def out(self) -> int:
        """Outputs of all members."""
        return sum(out for _, out in self.members)


@dataclass(frozen=True, slots=True)
class Quantization:
    """How an artifact is quantised, and which tensors of it."""

    method: str
    """"int8" or "int4"."""
    group_size: int | None = None
    """Inputs of a group in int4; None for int8."""
    lm_head: bool = True
    """Whether lm_head is quantised."""
    embedding: bool = False
    """Whether the embedding is: to int8 by rows, with either method."""
    tensors: tuple[QuantizedTensor, ...] = ()
    """Empty until the graph is exported. The embedding is not among them."""

    def __post_init__(self) -> None:
        """Raises ExportError for values that are not allowed."""
        if self.method not in METHODS:
            raise ExportError(f"quantize {self.method} is not known; methods are {', '.join(METHODS)}")
        if self.method == "int8" and self.group_size is not None:
            raise ExportError("group_size is for int4; int8 has one scale for each output: leave it out")
        if self.method == "int4" and self.group_size not in GROUP_SIZES:
            sizes = ", ".join(map(str, GROUP_SIZES))
            raise ExportError(f"group_size is {self.group_size}; int4 has groups of {sizes}")

    def stored(self, tensor: QuantizedTensor) -> Iterator[Described]:
        """The tensors of weights.safetensors that one quantised tensor is, each as its operator reads it.

        int8: [in, out] and a scale for each output. int4: two values a byte, the earlier one in the low
        half, [out, groups, group_size / 2], scales [out, groups], zero points two a byte [out, groups / 2].
        """
        if self.group_size is None:
            yield tensor.name, "I8", (tensor.inputs, tensor.out)
            yield tensor.name + SCALE, "F32", (tensor.out,)
            return
        groups = tensor.inputs // self.group_size
        yield tensor.name, "U8", (tensor.out, groups, self.group_size // 2)
        yield tensor.name + SCALE, "F32", (tensor.out, groups)
        yield tensor.name + ZERO_POINT, "U8", (tensor.out, -(-groups // 2))

    @property
    def stored_names(self) -> tuple[str, ...]:
        """The tensors of weights.safetensors that all of `tensors` are."""
        return tuple(name for tensor in self.tensors for name, _, _ in self.stored(tensor))

    @property
    def description(self) -> str:
        """For a line on the terminal: "int4 in groups of 32, lm_head too"."""
        groups = f" in groups of {self.group_size}" if self.group_size else ""
        also = [name for name, is_quantized in (("lm_head", self.lm_head),) if is_quantized]
        also += ["embedding in int8"] if self.embedding else []
        return f"{self.method}{groups}" + (f", {' and '.join(also)} too" if also else "")

    def to_dict(self) -> dict[str, Any]:
        """As the manifest has it."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Quantization:
        """Read what `to_dict` wrote. Raises ExportError, KeyError, TypeError or ValueError for damage."""
        size = data["group_size"]
        return cls(
            method=str(data["method"]),
            group_size=None if size is None else int(size),
            lm_head=bool(data["lm_head"]),
            embedding=bool(data["embedding"]),
            tensors=tuple(_tensor(entry) for entry in data["tensors"]),
        )


def embedding_stored(name: str, vocab: int, hidden: int) -> Sequence[Described]:
    """The tensors of a quantised embedding: [vocab, hidden], and a scale for each row."""
    return (name, "I8", (vocab, hidden)), (name + SCALE, "F32", (vocab,))


def _tensor(data: Mapping[str, Any]) -> QuantizedTensor:
    members = tuple((str(name), int(out)) for name, out in data["members"])
    order = data.get("order")
    made = QuantizedTensor(
        str(data["name"]), members, int(data["inputs"]), None if order is None else str(order)
    )
    if min(made.inputs, *(out for _, out in members)) < 1:
        raise ValueError(f"a size of {made.name} is not positive")
    return made
