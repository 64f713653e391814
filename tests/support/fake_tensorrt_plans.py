"""Plans for the fake TensorRT for RTX: the piece's ONNX graph with its profiles."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from fake_tensorrt_pieces import DTYPES

from cleave.export.artifact import Artifact
from cleave.export.pieces import Piece, cut
from cleave.runtime.engines.tensorrt_rtx.build import distinct
from cleave.runtime.engines.tensorrt_rtx.plan import EngineDescription, PieceDescription, TensorDescription
from cleave.runtime.engines.tensorrt_rtx.profiles import Profiles

VERSION = "1.7.1.fake"
MAGIC = b"fake plan\n"


def write_plans(
    artifact: Artifact, profiles: Profiles, folder: Path, capabilities: tuple[str, ...] = ("8.9",)
) -> None:
    """What a build would leave in `folder`, for the fake library."""
    pieces = []
    for name, piece in distinct(cut(artifact.batchful_graph())).items():
        head = json.dumps({"name": name, "profiles": [_limits(profile) for profile in profiles]})
        plan = MAGIC + head.encode() + b"\n" + piece.model.SerializeToString()
        (folder / f"{name}.plan").write_bytes(plan)
        pieces.append(describe(name, piece, len(plan)))
    EngineDescription(VERSION, capabilities, profiles, tuple(pieces)).write(folder)


def describe(name: str, piece: Piece, size: int) -> PieceDescription:
    """What engine.json says of a piece."""
    sides = (
        tuple(
            TensorDescription(
                value.name,
                DTYPES[value.type.tensor_type.elem_type][0],
                tuple(dim.dim_value or -1 for dim in value.type.tensor_type.shape.dim),
            )
            for value in values
        )
        for values in (piece.model.graph.input, piece.model.graph.output)
    )
    return PieceDescription(name, size, 0.0, *sides)


def _limits(profile: Any) -> dict[str, list[int]]:
    return {name: [size.low, size.high] for name, size in profile.dimensions.items()}
