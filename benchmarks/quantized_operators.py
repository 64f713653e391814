"""One linear layer in the quantised forms that ONNX Runtime has: milliseconds, and whether rows are exact.

For each form and shape: the time of 1, 8 and 128 rows, and how many different results one row has among
batches of 1 to 129 rows, at different places, with one thread and with two. One is what Cleave needs.
"int8 by rows" is what the export writes for int8.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort
import torch
from onnx import TensorProto, helper, numpy_helper
from record import save
from rich.console import Console
from rich.table import Table

from cleave.export.quantize import quantize_int4, quantize_int8
from cleave.export.quantized_storage import to_arrays

SHAPES = ((576, 3072), (1536, 576), (2048, 11264), (5632, 2048))
"""(in, out): gate and up, and down, of the shapes 135m and 1b."""
ROWS = (1, 8, 128)
_Array = npt.NDArray[Any]
_Nodes = list[tuple[str, list[str], list[str], dict[str, Any]]]


def forms(inputs: int, out: int) -> Iterator[tuple[str, _Nodes, dict[str, _Array]]]:
    """Name, nodes from x to y, and constants of every form."""
    weight = torch.randn(out, inputs, generator=torch.Generator().manual_seed(0)) * 0.05
    yield "float32", [("MatMul", ["x", "w"], ["y"], {})], {"w": weight.T.contiguous().numpy()}
    values, scales = to_arrays(quantize_int8(weight))
    constants = {
        "w": values,
        "scales": scales,
        "step": np.array(1 / 127, np.float32),
        "zero": np.array(128, np.uint8),
        "axis": np.array([1], np.int64),
    }
    rows: _Nodes = [
        ("Abs", ["x"], ["a"], {}),
        ("ReduceMax", ["a", "axis"], ["largest"], {"keepdims": 1}),
        ("Div", ["x", "largest"], ["shares"], {}),
    ]
    fused = ("MatMulIntegerToFloat", ["q", "w", "step", "scales", "zero"], ["f"], {"domain": "com.microsoft"})
    last = ("Mul", ["f", "largest"], ["y"], {})
    yield (
        "int8 by rows",
        [*rows, ("QuantizeLinear", ["shares", "step", "zero"], ["q"], {}), fused, last],
        constants,
    )
    signed = {**constants, "zero": np.array(0, np.int8)}
    yield (
        "int8 by rows, signed",
        [*rows, ("QuantizeLinear", ["shares", "step", "zero"], ["q"], {}), fused, last],
        signed,
    )
    yield (
        "int8 by tensor",
        [
            ("DynamicQuantizeLinear", ["x"], ["q", "one", "z"], {}),
            ("MatMulIntegerToFloat", ["q", "w", "one", "scales", "z"], ["y"], {"domain": "com.microsoft"}),
        ],
        {"w": values, "scales": scales},
    )
    for size in (32, 64, 128):
        if inputs % size == 0:
            packed = dict(zip(("w", "s", "z"), to_arrays(quantize_int4(weight, size)), strict=True))
            attributes = {"K": inputs, "N": out, "bits": 4, "block_size": size, "accuracy_level": 4}
            node = ("MatMulNBits", ["x", *packed], ["y"], {"domain": "com.microsoft", **attributes})
            yield f"int4, groups of {size}", [node], packed


def session(
    nodes: _Nodes, constants: dict[str, _Array], inputs: int, out: int, threads: int
) -> ort.InferenceSession:
    """A session of one form."""
    graph = helper.make_graph(
        [helper.make_node(kind, given, gives, **attributes) for kind, given, gives, attributes in nodes],
        "linear",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", inputs])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["rows", out])],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def milliseconds(linear: ort.InferenceSession, rows: int, inputs: int, seconds: float) -> float:
    """The median of calls for `seconds`; the weights stay in the caches."""
    x = np.random.default_rng(rows).standard_normal((rows, inputs), dtype=np.float32)
    times: list[float] = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times) < 5:
        began = time.perf_counter()
        linear.run(None, {"x": x})
        times.append(time.perf_counter() - began)
    return statistics.median(times) * 1e3


def results_of_a_row(sessions: list[ort.InferenceSession], inputs: int) -> int:
    """How many different results one row has, whatever the others are."""
    generator = np.random.default_rng(0)
    row = generator.standard_normal(inputs, dtype=np.float32)
    found = set()
    for linear in sessions:
        for rows in (1, 2, 7, 8, 32, 129):
            for place in {0, rows // 2, rows - 1}:
                x = generator.standard_normal((rows, inputs), dtype=np.float32) * generator.uniform(0.1, 10)
                x = x.astype(np.float32)
                x[place] = row
                found.add(linear.run(None, {"x": x})[0][place].tobytes())
    return len(found)


def main() -> None:
    """Measure every form and write results/quantized_operators.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=0.2, help="for each time")
    arguments = parser.parse_args()
    lines: list[dict[str, Any]] = []
    view = Table("in x out", "form", *(f"{rows} rows" for rows in ROWS), "results", title="milliseconds")
    for inputs, out in SHAPES:
        for name, nodes, constants in forms(inputs, out):
            one, many = (session(nodes, constants, inputs, out, count) for count in (1, arguments.threads))
            times = [milliseconds(many, rows, inputs, arguments.seconds) for rows in ROWS]
            results = results_of_a_row([one, many], inputs)
            view.add_row(f"{inputs} x {out}", name, *(f"{value:.3f}" for value in times), str(results))
            lines.append(
                {
                    "in": inputs,
                    "out": out,
                    "form": name,
                    "rows": ROWS,
                    "ms": times,
                    "results_of_a_row": results,
                }
            )
    Console().print(view)
    figures = {"benchmark": "quantized_operators", "threads": arguments.threads, "lines": lines}
    Console().print(f"written to {save('quantized_operators', figures)}", soft_wrap=True)


if __name__ == "__main__":
    main()
