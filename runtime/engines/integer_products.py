"""Whether this processor sums 8-bit products exactly."""

from __future__ import annotations

import numpy as np
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

from cleave.threads import session_options

_INPUTS = 64
_WIDTH = 32


def are_exact(threads: int | None = None) -> bool:
    """Multiply the largest integers as an int8 artifact does, and look at the sum.

    x86 processors without VNNI add pairs of products in 16 bits, which saturate: a sum that is too large
    for them comes out too small, and ONNX Runtime says nothing. `threads`: those of the engine, since this
    may be the session that makes the pool of the process.
    """
    weight = np.full((_INPUTS, _WIDTH), 127, np.int8)
    graph = helper.make_graph(
        [helper.make_node("MatMulInteger", ["x", "w"], ["y"])],
        "products",
        [helper.make_tensor_value_info("x", TensorProto.UINT8, [1, _INPUTS])],
        [helper.make_tensor_value_info("y", TensorProto.INT32, [1, _WIDTH])],
        [numpy_helper.from_array(weight, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    session = ort.InferenceSession(
        model.SerializeToString(), session_options(threads), providers=["CPUExecutionProvider"]
    )
    (sums,) = session.run(None, {"x": np.full((1, _INPUTS), 255, np.uint8)})
    return bool((sums == 255 * 127 * _INPUTS).all())
