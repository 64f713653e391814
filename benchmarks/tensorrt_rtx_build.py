"""Building plans of the Llama-2-7B shape in float16 for TensorRT for RTX, over the number of layers.

Weights are inputs of the plans, so none are needed, and neither is a GPU. One middle plan for all layers is
compared with a plan for each layer, and plans that take weights as inputs with plans that have them inside.
What sharing costs in speed is not measured here: plans run on RTX cards only, and this machine has none.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper
from record import save
from rich.console import Console
from rich.progress import track
from rich.table import Table
from shapes import SHAPES
from transformers import LlamaConfig

from cleave.export.artifact import BATCHFUL
from cleave.export.graphs import save_batchful, weight_names
from cleave.export.pieces import Piece, cut
from cleave.export.tensorfile import plan_layout
from cleave.export.trace import MetaModel
from cleave.runtime.engines.builder import graph_digest
from cleave.runtime.engines.tensorrt_rtx.build import BuildRequest, build_piece, distinct
from cleave.runtime.engines.tensorrt_rtx.library import load, make_logger
from cleave.runtime.engines.tensorrt_rtx.profiles import Profiles

SHAPE = "llama-2-7b"
CONSOLE = Console(stderr=True)


def pieces_of(layers: int) -> list[Piece]:
    """The pieces of the shape with so many layers, traced without weights."""
    shape = SHAPES[SHAPE] | {"num_hidden_layers": layers, "bos_token_id": 1, "eos_token_id": 2}
    config = LlamaConfig(**shape, tie_word_embeddings=False, architectures=["LlamaForCausalLM"])
    model = MetaModel(config, "float16", "LlamaForCausalLM")
    graph, _ = model.trace()
    shapes = model.shapes()
    layout = plan_layout((name, "F16", shapes[name]) for name in weight_names(graph))
    with tempfile.TemporaryDirectory() as folder:
        save_batchful(graph, layout, Path(folder))
        return cut(onnx.load(Path(folder) / BATCHFUL, load_external_data=False))


def build(name: str, piece: Piece, request: BuildRequest) -> tuple[float, int]:
    """Seconds and bytes of a plan."""
    trt = load()
    began = time.perf_counter()
    plan, _ = build_piece(trt, make_logger(trt), name, piece, request)
    return time.perf_counter() - began, plan.nbytes


def shared(pieces: Sequence[Piece]) -> list[tuple[str, Piece]]:
    """Role and piece of the plans that a model needs where layers share one."""
    return list(distinct(pieces).items())


def build_all(pieces: Sequence[tuple[str, Piece]], request: BuildRequest) -> dict[str, Any]:
    """Seconds and bytes of many plans together."""
    built = [build(name, piece, request) for name, piece in pieces]
    return {
        "plans": len(built),
        "seconds": round(sum(seconds for seconds, _ in built), 2),
        "bytes": sum(size for _, size in built),
    }


def over_depth(depths: Sequence[int], request: BuildRequest) -> list[dict[str, Any]]:
    """Shared and unshared plans of models of each depth."""
    rows = []
    for layers in track(depths, "layers", console=CONSOLE):
        pieces = pieces_of(layers)
        roles = ["first", *["middle"] * (layers - 1), "last"]
        one = build_all(shared(pieces), request)
        each = build_all(list(zip(roles, pieces, strict=True)), request)
        rows.append(
            {"layers": layers, "graph": graph_digest(pieces)[:12]}
            | {f"shared_{name}": value for name, value in one.items()}
            | {f"per_layer_{name}": value for name, value in each.items()}
        )
    return rows


def with_weights_inside(piece: Piece) -> Piece:
    """The same piece with random weights as constants of the graph."""
    model = onnx.ModelProto()
    model.CopyFrom(piece.model)
    generator = np.random.default_rng(0)
    for value in [value for value in model.graph.input if value.name in piece.weights]:
        shape = [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        weights = (generator.standard_normal(shape, np.float32) * 0.02).astype(np.float16)
        model.graph.input.remove(value)
        model.graph.initializer.append(numpy_helper.from_array(weights, value.name))
    return Piece(model, piece.inputs, piece.outputs, {}, piece.hands_on, piece.nodes)


def inside(pieces: list[Piece], request: BuildRequest) -> list[dict[str, Any]]:
    """Each piece with its weights as inputs, and inside."""
    rows = []
    for name, piece in distinct(pieces).items():
        seconds, size = build(name, piece, request)
        inside_seconds, inside_size = build(name, with_weights_inside(piece), request)
        rows.append(
            {
                "piece": name,
                "inputs_seconds": round(seconds, 2),
                "inputs_bytes": size,
                "inside_seconds": round(inside_seconds, 2),
                "inside_bytes": inside_size,
            }
        )
    return rows


def main() -> None:
    """Measure, print the tables, write results/tensorrt_rtx_build.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, nargs="+", default=[2, 4, 8, 16, 32])
    parser.add_argument("--compute_capability", nargs="+", default=["8.9"])
    parser.add_argument("--max_tokens", type=int, default=8192)
    parser.add_argument("--max_sequences", type=int, default=64)
    options = parser.parse_args()
    request = BuildRequest(
        tuple(options.compute_capability), Profiles(options.max_sequences, options.max_tokens)
    )
    build_all(shared(pieces_of(2)), request)  # the library's own start is no part of a build
    figures = {
        "shape": f"{SHAPE}, float16",
        "tensorrt_rtx": str(load().__version__),
        "compute_capabilities": list(request.compute_capabilities),
        "profiles": str(request.profiles),
        "over_depth": over_depth(options.layers, request),
        "weights": inside(pieces_of(2), request),
    }
    console = Console()
    for name in ("over_depth", "weights"):
        table = Table(title=name.replace("_", " "))
        for column in figures[name][0]:
            table.add_column(column.replace("_", " "), justify="right")
        for row in figures[name]:
            table.add_row(*(f"{value:,}" if isinstance(value, int) else str(value) for value in row.values()))
        console.print(table)
    console.print(f"written to {save('tensorrt_rtx_build', figures)}")


if __name__ == "__main__":
    main()
