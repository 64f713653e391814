"""Writing the graphs of an artifact."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import onnx
import onnx_ir as ir

from cleave.errors import ExportError
from cleave.export.artifact import BATCHFUL, WEIGHTS
from cleave.export.batchless import batchless_graphs
from cleave.export.manifest import batchless_files
from cleave.export.tensorfile import TensorLayout
from cleave.plugins.spec import AttentionSpec

_ACTIVATIONS = ("inputs_embeds", "logit_rows")


def weight_names(graph: ir.Model) -> list[str]:
    """The weights of a traced graph, in the order in which it uses them."""
    return [str(value.name) for value in graph.graph.inputs if value.name not in _ACTIVATIONS]


def save_batchful(graph: ir.Model, layout: TensorLayout, folder: Path) -> None:
    """Write batchful.onnx, its weights pointing into weights.safetensors as laid out."""
    for value in [value for value in graph.graph.inputs if value.name not in _ACTIVATIONS]:
        name = str(value.name)
        if value.dtype is None or value.shape is None:
            raise ExportError(f"the traced graph does not say the type of {name}")
        shape = tuple(int(size) for size in value.shape if isinstance(size, int))
        graph.graph.inputs.remove(value)
        value.const_value = ir.ExternalTensor(
            WEIGHTS,
            layout.offsets[name],
            layout.sizes[name],
            value.dtype,
            name=name,
            shape=ir.Shape(shape),
            base_dir=folder,
        )
        graph.graph.register_initializer(value)
    onnx.save(ir.to_proto(graph), folder / BATCHFUL)


def save_batchless(
    kind: Literal["prefill", "decode"], specs: tuple[AttentionSpec, ...], dtype: str, folder: Path
) -> tuple[str, ...]:
    """Write the batchless graphs of one kind, one per distinct spec; gives back their file names."""
    files = batchless_files(kind, len(specs))
    for spec, file in zip(specs, files, strict=True):
        prefill, decode = batchless_graphs(spec, dtype)
        onnx.save(prefill if kind == "prefill" else decode, folder / file)
    return files
