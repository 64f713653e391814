"""The operator of the cut as ONNX sees it.

It is not called `Attention`: TensorRT's parser goes by operator type alone and would take its own.
"""

from __future__ import annotations

import onnx

DOMAIN = "cleave"
OPERATOR = "CleaveAttention"
VERSION = 1


def is_cut(node: onnx.NodeProto) -> bool:
    """Whether an ONNX node is the attention operator."""
    return node.domain == DOMAIN and node.op_type == OPERATOR


def layer_of(node: onnx.NodeProto) -> int:
    """The layer that an attention operator belongs to."""
    for attribute in node.attribute:
        if attribute.name == "layer":
            return int(attribute.i)
    raise ValueError(f"operator {node.name!r} has no attribute 'layer'")


def operator_schema() -> onnx.defs.OpSchema:
    """q [tokens, heads * head_dim], k and v [tokens, kv_heads * head_dim], out like q, one dtype."""
    schema = onnx.defs.OpSchema
    return schema(
        OPERATOR,
        DOMAIN,
        VERSION,
        doc="RoPE and attention of one layer over all tokens of a step; the attention server computes it.",
        inputs=[schema.FormalParameter(name, "T") for name in ("q", "k", "v")],
        outputs=[schema.FormalParameter("out", "T")],
        type_constraints=[("T", ["tensor(float)", "tensor(float16)", "tensor(bfloat16)"], "")],
        attributes=[schema.Attribute("layer", schema.AttrType.INT, "", required=True)],
    )


def register_schema() -> None:
    """Make the operator known to onnx in this process. Doing it again changes nothing."""
    if not onnx.defs.has(OPERATOR, DOMAIN):
        onnx.defs.register_schema(operator_schema())
