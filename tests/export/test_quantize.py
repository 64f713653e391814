"""Quantised matrices: against the formulas in float64, and as ONNX Runtime's operators multiply them."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
import pytest
import torch
from command import assert_one_sentence
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from cleave.errors import ExportError
from cleave.export.quantization import Quantization, QuantizedTensor
from cleave.export.quantize import quantize_int4, quantize_int8
from cleave.export.quantized import GROUP_SIZES, GroupedInt4, Quantized, RowInt8
from cleave.export.quantized_storage import from_arrays, to_arrays

Array = npt.NDArray[Any]


def random_matrix(out: int, inputs: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(out, inputs, generator=torch.Generator().manual_seed(seed)) * 0.05


def by_definition(matrix: Quantized) -> Array:
    """What the integers stand for, weight by weight, in float64."""
    out, inputs = matrix.shape
    result = np.zeros((out, inputs))
    for row in range(out):
        for column in range(inputs):
            value = int(matrix.values[row, column])
            if isinstance(matrix, RowInt8):
                result[row, column] = value * float(matrix.scales[row])
            else:
                group = column // matrix.group_size
                zero = int(matrix.zero_points[row, group])
                result[row, column] = (value - zero) * float(matrix.scales[row, group])
    return result


def all_kinds(out: int = 24, inputs: int = 128) -> list[Quantized]:
    weight = random_matrix(out, inputs)
    return [quantize_int8(weight), *(quantize_int4(weight, size) for size in GROUP_SIZES)]


@pytest.mark.parametrize("matrix", all_kinds(5, 128), ids=lambda matrix: type(matrix).__name__)
def test_dequantising_follows_the_definition(matrix: Quantized) -> None:
    np.testing.assert_allclose(matrix.dequantize(), by_definition(matrix), rtol=1e-6, atol=1e-9)


# Rounding.


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 2**31), scale=st.floats(1e-6, 1e6), outlier=st.floats(1, 1000))
def test_int8_is_off_by_half_a_step_at_most(seed: int, scale: float, outlier: float) -> None:
    weight = random_matrix(6, 64, seed) * scale
    weight[2, 5] *= outlier
    matrix = quantize_int8(weight)
    error = np.abs(matrix.dequantize().astype(np.float64) - weight.numpy())
    assert (error <= 0.501 * matrix.scales[:, None].astype(np.float64)).all()
    assert (np.abs(matrix.values).max(axis=1) == 127).all()


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 2**31), size=st.sampled_from(GROUP_SIZES), shift=st.floats(-0.2, 0.2))
def test_int4_is_no_worse_than_rounding_from_least_to_largest(seed: int, size: int, shift: float) -> None:
    weight = random_matrix(4, 128, seed) + shift
    groups = weight.double().reshape(4, -1, size)
    low, high = groups.amin(2).clamp(max=0), groups.amax(2).clamp(min=0)
    step = (high - low) / 15
    zero = torch.round(-low / step)
    plain = (
        torch.clamp(torch.round(groups / step[..., None]) + zero[..., None], 0, 15) - zero[..., None]
    ) * step[..., None]
    worst = ((plain - groups) ** 2).sum((1, 2))
    got = quantize_int4(weight, size).dequantize().reshape(4, -1, size)
    error = ((torch.from_numpy(got).double() - groups) ** 2).sum((1, 2))
    assert (error <= worst * 1.0001).all()


def test_zeros_stay_zeros() -> None:
    weight = random_matrix(4, 64)
    weight[1] = 0
    weight[2, :32] = 0
    for matrix in (quantize_int8(weight), quantize_int4(weight, 32)):
        back = matrix.dequantize()
        assert (back[1] == 0).all()
        assert (back[2, :32] == 0).all()
        assert np.isfinite(back).all()


def test_a_group_of_one_value_is_kept() -> None:
    for value in (0.5, -0.5):
        back = quantize_int4(torch.full((2, 64), value), 64).dequantize()
        np.testing.assert_allclose(back, value, rtol=1e-6)


# Storage, and the operators that read it.


@pytest.mark.parametrize("inputs", [32, 64, 96, 128, 256])
def test_what_is_stored_comes_back(inputs: int) -> None:
    weight = random_matrix(70, inputs)
    kinds: list[Quantized] = [quantize_int8(weight)]
    kinds += [quantize_int4(weight, size) for size in GROUP_SIZES if inputs % size == 0]
    for matrix in kinds:
        back = from_arrays(to_arrays(matrix))
        assert type(back) is type(matrix)
        np.testing.assert_array_equal(back.values, matrix.values)
        np.testing.assert_array_equal(back.dequantize(), matrix.dequantize())


def test_the_stored_arrays_are_as_described() -> None:
    for matrix, size in zip(all_kinds(24, 384), (None, *GROUP_SIZES), strict=True):
        method = "int4" if size else "int8"
        tensor = QuantizedTensor("w", (("a", 10), ("b", 14)), 384)
        described = list(Quantization(method, size).stored(tensor))
        kinds = {"I8": np.int8, "U8": np.uint8, "F32": np.float32}
        arrays = to_arrays(matrix)
        assert [(array.dtype, array.shape) for array in arrays] == [
            (kinds[dtype], shape) for _, dtype, shape in described
        ]


def nbits_session(matrix: GroupedInt4, level: int) -> ort.InferenceSession:
    out, inputs = matrix.shape
    arrays = to_arrays(matrix)
    names = ["w", "scale", "zero"]
    node = helper.make_node(
        "MatMulNBits", ["x", *names], ["y"], domain="com.microsoft", K=inputs, N=out, bits=4,
        block_size=matrix.group_size, accuracy_level=level,
    )  # fmt: skip
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", inputs])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["rows", out])],
        [onnx.numpy_helper.from_array(array, name) for name, array in zip(names, arrays, strict=True)],
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    return ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("inputs", [96, 128, 320])
@pytest.mark.parametrize("size", GROUP_SIZES)
def test_matmulnbits_reads_the_stored_int4(size: int, inputs: int) -> None:
    """At accuracy level 0 it computes in floats, so that nothing but the layout makes a difference."""
    if inputs % size:
        pytest.skip("no whole groups")
    matrix = quantize_int4(random_matrix(48, inputs) + 0.01, size)
    x = np.random.default_rng(0).standard_normal((5, inputs)).astype(np.float32)
    expected = x.astype(np.float64) @ by_definition(matrix).T
    got = nbits_session(matrix, 0).run(None, {"x": x})[0]
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)
    rounded = nbits_session(matrix, 4).run(None, {"x": x})[0]
    assert np.linalg.norm(rounded - expected) < 0.02 * np.linalg.norm(expected)


# What is refused.


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: quantize_int4(random_matrix(4, 96), 64), ("96", "64", "32")),
        (lambda: quantize_int4(random_matrix(4, 50), 32), ("50", "int8")),
        (lambda: quantize_int4(random_matrix(4, 64), 16), ("16", "32, 64, 128")),
        (lambda: Quantization("int2"), ("int2", "int8, int4")),
        (lambda: Quantization("int8", 32), ("group_size", "int4")),
        (lambda: Quantization("int4", 48), ("48", "32, 64, 128")),
        (lambda: RowInt8(np.zeros((2, 3), np.int8), np.zeros(3, np.float32)), ("2", "3")),
        (lambda: RowInt8(np.zeros((2, 3), np.uint8), np.zeros(2, np.float32)), ("uint8", "int8")),
        (
            lambda: GroupedInt4(
                np.full((2, 32), 16, np.uint8), np.zeros((2, 1), np.float32), np.zeros((2, 1), np.uint8), 32
            ),
            ("15",),
        ),
        (
            lambda: GroupedInt4(
                np.zeros((2, 64), np.uint8), np.zeros((2, 1), np.float32), np.zeros((2, 1), np.uint8), 32
            ),
            ("[2, 2]", "[2, 1]"),
        ),
    ],
)
def test_what_does_not_fit_together_is_refused(make: Any, words: tuple[str, ...]) -> None:
    with pytest.raises(ExportError) as error:
        make()
    assert_one_sentence(str(error.value), "", *words)
