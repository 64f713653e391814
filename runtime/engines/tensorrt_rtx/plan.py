"""engine.json: what the plans of one model are, so that they can be looked at without a GPU."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import onnx

from cleave.errors import EngineError, reason
from cleave.export.pieces import Piece
from cleave.runtime.engines.engine import EngineOptions
from cleave.runtime.engines.tensorrt_rtx.profiles import Profiles

DESCRIPTION = "engine.json"
_FORMAT = 1
_TYPES: dict[int, str] = {
    onnx.TensorProto.FLOAT: "FLOAT",
    onnx.TensorProto.FLOAT16: "HALF",
    onnx.TensorProto.BFLOAT16: "BF16",
    onnx.TensorProto.INT64: "INT64",
}


@dataclass(frozen=True, slots=True)
class TensorDescription:
    """An input or output of a plan."""

    name: str
    dtype: str
    """As TensorRT calls it: "FLOAT", "HALF", "BF16", "INT64"."""
    shape: tuple[int, ...]
    """-1 where the size changes from step to step."""


@dataclass(frozen=True, slots=True)
class PieceDescription:
    """One plan: of the first, the middle or the last piece."""

    name: str
    bytes: int
    seconds: float
    """What building it took."""
    inputs: tuple[TensorDescription, ...]
    outputs: tuple[TensorDescription, ...]

    @property
    def file(self) -> str:
        """Name of the plan's file."""
        return f"{self.name}.plan"

    def is_of(self, piece: Piece) -> bool:
        """Whether names, types and shapes are those of a piece."""
        graph = piece.model.graph
        return (self.inputs, self.outputs) == (_tensors(graph.input), _tensors(graph.output))


@dataclass(frozen=True, slots=True)
class EngineDescription:
    """The plans of one model."""

    version: str
    """Of TensorRT for RTX."""
    compute_capabilities: tuple[str, ...]
    profiles: Profiles
    pieces: tuple[PieceDescription, ...]

    def write(self, folder: Path) -> None:
        """Write engine.json."""
        text = json.dumps({"format": _FORMAT, **asdict(self)}, indent=1) + "\n"
        (folder / DESCRIPTION).write_text(text, "utf-8")

    @classmethod
    def read(cls, folder: Path) -> EngineDescription:
        """Read what `write` wrote. Raises EngineError where it is damaged."""
        path = folder / DESCRIPTION
        try:
            data = json.loads(path.read_text("utf-8"))
            if data["format"] != _FORMAT:
                raise ValueError(f"format {data['format']}")
            return cls(
                version=str(data["version"]),
                compute_capabilities=tuple(map(str, data["compute_capabilities"])),
                profiles=Profiles(**data["profiles"]),
                pieces=tuple(_piece(piece) for piece in data["pieces"]),
            )
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise EngineError(f"{path} cannot be read ({reason(error)}); build the engine again") from None

    def check_fits(self, options: EngineOptions, capability: str) -> None:
        """Raises EngineError where plans are for other GPUs or smaller steps."""
        if capability not in self.compute_capabilities:
            raise EngineError(
                f"this engine was built for compute capability {', '.join(self.compute_capabilities)}, and "
                f"this GPU has {capability}; build it with --compute_capability {capability}"
            )
        most = self.profiles.max_tokens
        if options.max_tokens > most:
            raise EngineError(
                f"this engine was built for steps of up to {most} tokens, and {options.max_tokens} are asked "
                f"for; build it with --max_tokens_per_step {options.max_tokens}, or lower "
                f"max_tokens_per_step to {most}"
            )


def _tensors(values: Iterable[onnx.ValueInfoProto]) -> tuple[TensorDescription, ...]:
    types = [(value.name, value.type.tensor_type) for value in values]
    return tuple(
        TensorDescription(
            name,
            _TYPES.get(kind.elem_type, str(kind.elem_type)),
            tuple(-1 if dim.dim_param else dim.dim_value for dim in kind.shape.dim),
        )
        for name, kind in types
    )


def _piece(data: dict[str, Any]) -> PieceDescription:
    tensors = {
        side: tuple(
            TensorDescription(item["name"], item["dtype"], tuple(item["shape"])) for item in data[side]
        )
        for side in ("inputs", "outputs")
    }
    return PieceDescription(data["name"], data["bytes"], data["seconds"], **tensors)
