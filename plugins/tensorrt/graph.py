"""The graph as TensorRT's parser needs it: every field of the plugin as an attribute of the node."""

from __future__ import annotations

from collections.abc import Sequence

import onnx

from cleave.errors import EngineError
from cleave.kvcache.spec import AttentionSpec
from cleave.plugins.schema import DOMAIN, VERSION, is_cut, layer_of


def with_fields(model: onnx.ModelProto, specs: Sequence[AttentionSpec]) -> onnx.ModelProto:
    """A copy of a batchful graph, for TensorRT's parser; `specs` are the artifact's, one for each layer.

    The parser finds a plugin by the attributes `plugin_version` and `plugin_namespace`. Raises EngineError
    unless each layer has one operator.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    nodes = [node for node in copy.graph.node if is_cut(node)]
    layers = sorted(map(layer_of, nodes))
    if layers != list(range(len(specs))):
        raise EngineError(
            f"the graph has CleaveAttention for the layers {layers}, and the manifest has {len(specs)} "
            "layers; export the model again"
        )
    for node in nodes:
        spec = specs[layer_of(node)]
        added: dict[str, int | str] = {
            "heads": spec.heads,
            "kv_heads": spec.kv_heads,
            "head_dim": spec.head_dim,
            "plugin_version": str(VERSION),
            "plugin_namespace": DOMAIN,
        }
        node.attribute.extend(onnx.helper.make_attribute(name, value) for name, value in added.items())
    return copy
