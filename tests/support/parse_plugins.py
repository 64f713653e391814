"""A process that lets the parser of TensorRT for RTX create the plugins of an artifact; prints JSON lines.

Each parse is a process of its own: TensorRT for RTX runs no plugins, and its parser ends the process once
it has created one.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from typing import Any

import onnx
import tensorrt_rtx_libs  # noqa: F401  (brings the shared libraries)

import tensorrt_rtx_bindings as trt  # isort: skip

from cleave.errors import CleaveError
from cleave.export.artifact import Artifact
from cleave.plugins.schema import is_cut, layer_of
from cleave.plugins.tensorrt.creator import register
from cleave.plugins.tensorrt.graph import with_fields
from cleave.plugins.tensorrt.host import Host, bound


class Logger(trt.ILogger):  # type: ignore[misc]
    """Prints what the parser says of plugins."""

    def __init__(self) -> None:
        trt.ILogger.__init__(self)

    def log(self, severity: Any, message: str) -> None:
        if "created plugin" in message:
            tell(said=message)


def tell(**values: Any) -> None:
    print(json.dumps(values), flush=True)


def graphs(artifact: Artifact) -> Iterator[tuple[str, onnx.ModelProto]]:
    """The operator of each layer alone, the whole graph, and the graph as the artifact has it."""
    plain = artifact.batchful_graph()
    whole = with_fields(plain, artifact.manifest.layer_specs)
    specs = artifact.manifest.layer_specs
    kind = {"float32": 1, "float16": 10, "bfloat16": 16}[artifact.manifest.dtype]
    for node in filter(is_cut, whole.graph.node):
        spec = specs[layer_of(node)]
        widths = (spec.q_size, spec.kv_size, spec.kv_size)
        inputs = [
            onnx.helper.make_tensor_value_info(name, kind, ["tokens", width])
            for name, width in zip(node.input, widths, strict=True)
        ]
        outputs = [onnx.helper.make_tensor_value_info(node.output[0], kind, ["tokens", spec.q_size])]
        graph = onnx.helper.make_graph([node], "one", inputs, outputs)
        yield f"layer {layer_of(node)}", onnx.helper.make_model(graph, opset_imports=whole.opset_import)
    yield "whole", whole
    yield "plain", plain


def parse(name: str, model: onnx.ModelProto, path: str) -> None:
    """Parse a graph in a child."""
    child = os.fork()
    if child:
        _, status = os.waitpid(child, 0)
        tell(graph=name, ended=status)
        return
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    creator = register(trt)
    create = creator.create_plugin

    def created(node: str, fields: Any, phase: Any) -> Any:
        plugin = create(node, fields, phase)
        own = plugin.operator
        tell(node=node, phase=phase.name, fields=own.fields.values(), is_building=own.is_building)
        return plugin

    creator.create_plugin = created
    logger = Logger()
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    host = Host()
    try:
        with bound(host), host.serving(None):
            tell(is_parsed=parser.parse(model.SerializeToString(), path))
    except CleaveError as error:
        tell(error=str(error))
    os._exit(0)


if __name__ == "__main__":
    opened = Artifact.open(sys.argv[1])
    again = register(trt) is register(trt)
    tell(version=trt.__version__, is_registered_once=again)
    for each, graph in graphs(opened):
        tell(graph=each)
        parse(each, graph, str(opened.folder / "batchful.onnx"))
