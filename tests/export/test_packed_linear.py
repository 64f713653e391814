"""GPTQ and AWQ matrices: unpacked as the libraries that write them do, and by the formats' definitions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from packed import Packing, pack
from safetensors.torch import load_file, save_file

from cleave.errors import CheckpointError
from cleave.export.packed_linear import PackedLinear
from cleave.export.quantized_checkpoint_config import QuantizationConfig
from cleave.export.tensorfile import read_header

BY_LIBRARIES = Path(__file__).parent / "packed"


def linear(file: Path, config: dict[str, Any]) -> PackedLinear:
    tensors = {name: tensor for name, tensor in read_header(file).items() if name != "expected"}
    return PackedLinear("layer", QuantizationConfig.parse(config, where="the test"), tensors)


def restored(packed: PackedLinear, group_size: int) -> np.ndarray[Any, Any]:
    """The matrix as the artifact gets it, its columns put back where they were."""
    columns = packed.matrix(group_size).dequantize()
    weight = np.empty_like(columns)
    weight[:, np.argsort(packed.group_of(), kind="stable")] = columns
    return weight


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("gptq_symmetric_32", {"group_size": 32, "sym": True}),
        ("gptq_asymmetric_64", {"group_size": 64, "sym": False}),
        ("gptq_act_order_32", {"group_size": 32, "sym": False, "desc_act": True}),
        ("gptq_per_channel", {"group_size": -1, "sym": True}),
        ("awq_32", {"group_size": 32, "version": "GEMM"}),
        ("awq_128", {"group_size": 128, "version": "gemm"}),
    ],
)
def test_what_the_libraries_packed_and_unpacked(name: str, config: dict[str, Any]) -> None:
    """`expected` is what AutoGPTQ 0.7.1 (forward of the identity) and AutoAWQ 0.2.9 (dequantize_gemm) give
    for the tensors that they packed, in float16. One float16 product of an int and a float16 is rounded
    once, so that rounding ours gives the same bits.
    """
    file = BY_LIBRARIES / f"{name}.safetensors"
    packed = linear(file, {"quant_method": name.partition("_")[0], "bits": 4} | config)
    packed.check()
    expected = load_file(file)["expected"]
    assert packed.shape == tuple(expected.shape) == (32, 128)
    for got in (packed.dequantize(), restored(packed, 32)):
        assert torch.equal(torch.from_numpy(got).half(), expected)


@settings(max_examples=60, deadline=None)
@given(
    method=st.sampled_from([("gptq", "gptq"), ("gptq", "gptq_v2"), ("awq", "gemm")]),
    outputs=st.integers(1, 4),
    groups=st.integers(1, 3),
    group_size=st.sampled_from([32, 64, 128]),
    symmetric=st.booleans(),
    act_order=st.booleans(),
    scale_dtype=st.sampled_from([torch.float16, torch.bfloat16, torch.float32]),
    seed=st.integers(0, 2**31),
)
def test_what_the_definitions_say(
    tmp_path_factory: pytest.TempPathFactory,
    method: tuple[str, str],
    outputs: int,
    groups: int,
    group_size: int,
    symmetric: bool,
    act_order: bool,
    scale_dtype: torch.dtype,
    seed: int,
) -> None:
    is_gptq = method[0] == "gptq"
    packing = Packing(*method, group_size, symmetric and is_gptq, act_order and is_gptq, False, scale_dtype)
    generator = torch.Generator().manual_seed(seed)
    # Shifted from zero, so that zero points of 0 and 15 occur.
    shift = torch.randn(8 * outputs, 1, generator=generator)
    weight = torch.randn(8 * outputs, groups * group_size, generator=generator) + 2 * shift
    tensors, meant = pack(weight, packing, seed)
    file = tmp_path_factory.mktemp("packed") / "layer.safetensors"
    save_file(tensors, file)
    packed = linear(file, packing.config())
    packed.check()
    assert torch.equal(torch.from_numpy(packed.dequantize()), meant.float())
    assert torch.equal(torch.from_numpy(restored(packed, group_size)), meant.float())
    assert torch.equal(torch.from_numpy(restored(packed, 32)), meant.float())


def test_zero_points_of_version_2_in_a_symmetric_file_that_says_version_1(tmp_path: Path) -> None:
    """Such files exist; that a symmetric zero point is 8 decides."""
    tensors, meant = pack(torch.randn(8, 64), Packing(version="gptq_v2", symmetric=True))
    save_file(tensors, tmp_path / "layer.safetensors")
    config = Packing(version="gptq", symmetric=True).config()
    got = linear(tmp_path / "layer.safetensors", config).dequantize()
    assert torch.equal(torch.from_numpy(got), meant.float())


def test_symmetric_with_other_zero_points_is_a_contradiction(tmp_path: Path) -> None:
    tensors, _ = pack(torch.randn(8, 64), Packing())
    save_file(tensors, tmp_path / "layer.safetensors")
    packed = linear(tmp_path / "layer.safetensors", Packing(symmetric=True).config())
    with pytest.raises(CheckpointError, match=r"zero points other than 8.*sym: true"):
        packed.dequantize()
