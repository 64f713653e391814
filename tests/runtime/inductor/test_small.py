"""The kernels for few rows: on a GPU where there is one, else in Triton's interpreter."""

from __future__ import annotations

import operator
from dataclasses import astuple

import pytest
import torch
import torch.nn.functional as F
from torch import fx

from cleave.errors import EngineError
from cleave.runtime.engines.inductor import choose
from cleave.runtime.engines.inductor.choose import Linear
from cleave.runtime.engines.inductor.direct import is_direct
from cleave.runtime.engines.inductor.fix import fix_rows
from cleave.runtime.engines.inductor.fuse import fuse_small_linears
from cleave.runtime.engines.inductor.operators import rms_norm
from cleave.runtime.engines.inductor.program import Program
from cleave.runtime.engines.inductor.small import (
    ADD_NORM,
    SMALL_LINEAR,
    SMALL_NORM,
    SPLIT_LINEAR,
    add_norm,
    small_linear,
    small_norm,
    split_linear,
)
from cleave.runtime.engines.inductor.small_launch import Blocks
from cleave.runtime.engines.inductor.tiles import TILED_LINEAR, tiled_linear

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPES = (torch.float16, torch.bfloat16) if DEVICE == "cuda" else (torch.float16,)
"""Triton's interpreter takes bfloat16 for whole numbers."""
EPSILON = 1e-5


def random(*shape: int, dtype: torch.dtype, seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE, dtype)


def assert_close(got: torch.Tensor, wanted: torch.Tensor, dtype: torch.dtype) -> None:
    """`wanted` is float64; what a few roundings to `dtype` may cost."""
    assert got.dtype == dtype
    error = (got.double() - wanted).norm() / wanted.norm()
    assert error < (2e-3 if dtype == torch.float16 else 1.5e-2)


def linear_layer(
    x: torch.Tensor,
    weight: torch.Tensor,
    factors: torch.Tensor | None = None,
    residual: torch.Tensor | None = None,
    *,
    swiglu: bool = False,
) -> torch.Tensor:
    """What a linear layer, with what is fused to it, gives in float64."""
    read = x if factors is None else rms_norm(x, factors, EPSILON)
    result = read.double() @ weight.double().T
    if swiglu:
        gate, up = result.chunk(2, -1)
        result = F.silu(gate) * up
    return result if residual is None else result + residual.double()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", [1, 2, 5, 16, 23, 32])
@pytest.mark.parametrize("width", [256, 200], ids=["even", "ragged"])
@pytest.mark.parametrize("fused", ["plain", "norm", "residual", "swiglu", "norm swiglu"])
def test_a_linear_layer_of_few_rows(dtype: torch.dtype, rows: int, width: int, fused: str) -> None:
    if rows > 1 and "norm" in fused:
        pytest.skip("a norm is fused for one row only")
    x = random(rows, width, dtype=dtype, seed=0)
    weight = random(96, width, dtype=dtype, seed=1) / 8
    factors = random(width, dtype=dtype, seed=2) if "norm" in fused else None
    residual = random(rows, 96, dtype=dtype, seed=3) if fused == "residual" else None
    blocks = Blocks(16, 64, 4, 3)
    got = small_linear(x, weight, factors, residual, EPSILON, "swiglu" in fused, list(astuple(blocks)))
    assert_close(got, linear_layer(x, weight, factors, residual, swiglu="swiglu" in fused), dtype)


@pytest.mark.parametrize("rows", [1, 5])
def test_what_is_given_may_be_columns_of_something_wider(rows: int) -> None:
    """As what joined layers give."""
    x, residual = random(rows, 512, dtype=torch.float16, seed=0).split(256, -1)
    weight = random(256, 256, dtype=torch.float16, seed=1) / 8
    blocks = list(astuple(Blocks(16, 64, 4, 3)))
    wanted = linear_layer(x, weight, residual=residual)
    assert_close(small_linear(x, weight, None, residual, EPSILON, False, blocks), wanted, torch.float16)
    if rows > 1:
        parts = split_linear(x, weight, list(astuple(Blocks(64, 64, 4, 3, 2))))
        assert_close(parts.sum(0).half(), linear_layer(x, weight), torch.float16)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [256, 200], ids=["even", "ragged"])
@pytest.mark.parametrize("fused", ["plain", "norm", "residual", "swiglu", "norm swiglu"])
@pytest.mark.parametrize(("columns", "turns"), [(1, 1), (2, 3), (4, 8)])
def test_a_linear_layer_of_one_row_that_is_held(
    dtype: torch.dtype, width: int, fused: str, columns: int, turns: int
) -> None:
    x, weight = random(1, width, dtype=dtype, seed=0), random(90, width, dtype=dtype, seed=1) / 8
    factors = random(width, dtype=dtype, seed=2) if "norm" in fused else None
    residual = random(1, 90, dtype=dtype, seed=3) if fused == "residual" else None
    blocks = Blocks(columns, 0, 4, turns=turns)
    got = small_linear(x, weight, factors, residual, EPSILON, "swiglu" in fused, list(astuple(blocks)))
    assert_close(got, linear_layer(x, weight, factors, residual, swiglu="swiglu" in fused), dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", [2, 16, 23])
@pytest.mark.parametrize("splits", [1, 3, 4])
@pytest.mark.parametrize("width", [256, 200], ids=["even", "ragged"])
def test_the_parts_of_a_linear_layer_are_added_up_by_the_norm(
    dtype: torch.dtype, rows: int, splits: int, width: int
) -> None:
    x, weight = random(rows, width, dtype=dtype, seed=0), random(96, width, dtype=dtype, seed=1) / 8
    residual, factors = random(rows, 96, dtype=dtype, seed=2), random(96, dtype=dtype, seed=3)
    parts = split_linear(x, weight, list(astuple(Blocks(64, 64, 4, 3, splits))))
    assert parts.shape == (splits, rows, 96)
    assert parts.dtype == torch.float32
    total, normed = add_norm(parts, residual, factors, EPSILON)
    wanted = linear_layer(x, weight, residual=residual)
    assert_close(total, wanted, dtype)
    assert_close(normed, rms_norm(wanted, factors.double(), EPSILON), dtype)
    torch.testing.assert_close(normed, rms_norm(total, factors, EPSILON))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", [33, 40, 64, 65, 100, 127])
@pytest.mark.parametrize(("height", "width"), [(256, 256), (272, 200)], ids=["even", "ragged"])
def test_the_layers_of_a_band(dtype: torch.dtype, rows: int, height: int, width: int) -> None:
    """By all kernels that are timed for it."""
    band = 64 if rows <= 64 else 128
    x, weight = random(rows, width, dtype=dtype, seed=0), random(height, width, dtype=dtype, seed=1) / 8
    residual, factors = random(rows, height, dtype=dtype, seed=2), random(height, dtype=dtype, seed=3)
    library, *kernels = choose._candidates(Linear(band, height, width, swiglu=True))
    assert library is None
    assert kernels
    wanted = linear_layer(x, weight, swiglu=True)
    for blocks in kernels:
        got = small_linear(x, weight, None, None, EPSILON, True, list(astuple(blocks)))
        assert_close(got, wanted, dtype)
    library, *kernels = choose._candidates(Linear(band, height, width, residual=True, norm_after=True))
    assert library is None
    assert kernels
    wanted = linear_layer(x, weight, residual=residual)
    for blocks in kernels:
        parts = split_linear(x, weight, list(astuple(blocks)))
        assert parts.shape == (blocks.splits, rows, height)
        total, normed = add_norm(parts, residual, factors, EPSILON)
        assert_close(total, wanted, dtype)
        assert_close(normed, rms_norm(wanted, factors.double(), EPSILON), dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("height", "width"), [(96, 256), (272, 200)], ids=["even", "ragged"])
@pytest.mark.parametrize("fused", ["plain", "residual", "swiglu"])
def test_a_linear_layer_in_tiles(dtype: torch.dtype, height: int, width: int, fused: str) -> None:
    """The first rows of any number of rows are the same, bit for bit, and right."""
    most = 530
    x = random(most, width, dtype=dtype, seed=0)
    weight = random(height, width, dtype=dtype, seed=1) / 8
    residual = random(most, height, dtype=dtype, seed=3) if fused == "residual" else None
    wanted = linear_layer(x, weight, residual=residual, swiglu=fused == "swiglu")
    whole = tiled_linear(x, weight, residual, fused == "swiglu")
    assert_close(whole, wanted, dtype)
    for rows in (1, 2, 16, 17, 40, 100, 256, 300):
        part = tiled_linear(
            x[:rows], weight, None if residual is None else residual[:rows], fused == "swiglu"
        )
        assert torch.equal(part, whole[:rows]) or DEVICE == "cpu"
        assert_close(part, wanted[:rows], dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_norm_of_few_rows_is_that_of_transformers(dtype: torch.dtype) -> None:
    x, factors = random(7, 200, dtype=dtype, seed=0), random(200, dtype=dtype, seed=1)
    torch.testing.assert_close(small_norm(x, factors, EPSILON), rms_norm(x, factors, EPSILON))


def llama_mlp() -> Program:
    """x, residual -> x + down(silu(gate) * up) of the norm of x, gate and up joined."""

    def mlp(x, norm, both, down):  # type: ignore[no-untyped-def]
        gate, up = torch.functional.split(F.linear(norm_of(x, norm), both, None), [64, 64], -1)
        return (x + F.linear(gate * torch.sigmoid(gate) * up, down, None),)

    def norm_of(x, norm):  # type: ignore[no-untyped-def]
        return x.tracer.create_proxy("call_function", rms_norm, (x, norm, EPSILON), {})

    return Program(fx.symbolic_trace(mlp), ("x",), (("norm",), ("both",), ("down",)), ("y",))


SHAPES = {"norm": (32,), "both": (128, 32), "down": (32, 64)}


@pytest.mark.parametrize("rows", [1, 4])
def test_a_layer_is_fused_with_what_stands_around_it(rows: int) -> None:
    program = llama_mlp()
    asked: list[Linear] = []

    def choose(layer: Linear) -> Blocks:
        asked.append(layer)
        return Blocks(16, 32, 4, 2)

    fused = fuse_small_linears(program, rows, SHAPES, choose)
    targets = [node.target for node in fused.module.graph.nodes if node.op == "call_function"]
    assert [target for target in targets if target in (SMALL_NORM, SMALL_LINEAR)] == (
        [SMALL_LINEAR] * 2 if rows == 1 else [SMALL_NORM, SMALL_LINEAR, SMALL_LINEAR]
    )
    assert (rms_norm in targets, F.linear in targets) == (False, False)
    assert torch.sigmoid not in targets
    assert asked == [
        Linear(rows, 128, 32, norm=rows == 1, residual=False, swiglu=True),
        Linear(rows, 32, 64, norm=False, residual=True, swiglu=False),
    ]
    given = [random(rows, 32, dtype=torch.float16, seed=0)]
    given += [random(*shape, dtype=torch.float16, seed=1) / 4 for shape in SHAPES.values()]
    (got,), (wanted,) = fused.module(*given), program.module(*given)
    assert_close(got, wanted.double(), torch.float16)


def two_layers() -> Program:
    """x, y -> x + down(y), and what a linear layer gives of the norm of it."""

    def layers(x, y, down, norm, up):  # type: ignore[no-untyped-def]
        total = x + F.linear(y, down, None)
        normed = total.tracer.create_proxy("call_function", rms_norm, (total, norm, EPSILON), {})
        return total, F.linear(normed, up, None)

    return Program(fx.symbolic_trace(layers), ("x", "y"), (("down",), ("norm",), ("up",)), ("total", "z"))


@pytest.mark.parametrize("blocks", [None, Blocks(16, 32, 4, 2), Blocks(16, 32, 4, 2, 2)])
@pytest.mark.parametrize("rows", [1, 4])
def test_a_norm_adds_up_what_comes_in_parts(rows: int, blocks: Blocks | None) -> None:
    program = two_layers()
    shapes = {"down": (32, 64), "norm": (32,), "up": (48, 32)}
    asked: list[Linear] = []

    def choose(layer: Linear) -> Blocks | None:
        asked.append(layer)
        return blocks if layer.norm_after else Blocks(16, 32, 4, 2)

    fused = fuse_small_linears(program, rows, shapes, choose)
    targets = [node.target for node in fused.module.graph.nodes if node.op == "call_function"]
    wanted = {
        None: [F.linear, torch.unsqueeze, ADD_NORM],
        Blocks(16, 32, 4, 2): [SMALL_LINEAR, SMALL_NORM],
        Blocks(16, 32, 4, 2, 2): [SPLIT_LINEAR, ADD_NORM],
    }[blocks]
    if rows > 1:
        assert [one for one in targets if one is not operator.getitem] == [*wanted, SMALL_LINEAR]
    assert asked[0] == Linear(rows, 32, 64, residual=True, norm_after=rows > 1)
    given = [random(rows, 32, dtype=torch.float16, seed=0), random(rows, 64, dtype=torch.float16, seed=1)]
    given += [random(*shape, dtype=torch.float16, seed=2) / 4 for shape in shapes.values()]
    for got, right in zip(fused.module(*given), program.module(*given), strict=True):
        assert_close(got, right.double(), torch.float16)


def test_with_fixed_rows_nothing_is_left_to_a_library() -> None:
    program = llama_mlp()
    fixed = fix_rows(program, "here")
    targets = [node.target for node in fixed.module.graph.nodes if node.op == "call_function"]
    assert targets == [SMALL_NORM, TILED_LINEAR, TILED_LINEAR]
    for rows in (1, 5):
        given = [random(rows, 32, dtype=torch.float16, seed=0)]
        given += [random(*shape, dtype=torch.float16, seed=1) / 4 for shape in SHAPES.values()]
        (got,), (wanted,) = fixed.module(*given), program.module(*given)
        assert_close(got, wanted.double(), torch.float16)


def test_a_product_of_activations_cannot_be_fixed() -> None:
    module = fx.symbolic_trace(lambda x: (torch.matmul(x, x),))
    with pytest.raises(EngineError, match="the piece multiplies activations, so it cannot be deterministic"):
        fix_rows(Program(module, ("x",), (), ("y",)), "the piece")


def test_where_the_library_is_faster_it_stays() -> None:
    program = llama_mlp()
    kept = fuse_small_linears(program, 4, SHAPES, lambda layer: None)
    targets = [node.target for node in kept.module.graph.nodes if node.op == "call_function"]
    assert targets.count(F.linear) == 2
    assert SMALL_LINEAR not in targets


@pytest.mark.parametrize(
    ("rows", "library", "expected"),
    [
        (1, (), True),
        (4, (), True),
        (4, ("plain",), True),
        (4, ("residual",), True),  # its sum is one launch, with Inductor and without
        (4, ("swiglu",), False),  # three that Inductor makes one of
    ],
)
def test_a_program_is_compiled_where_there_is_something_to_join(
    rows: int, library: tuple[str, ...], expected: bool
) -> None:
    def choose(layer: Linear) -> Blocks | None:
        kind = "swiglu" if layer.swiglu else "residual" if layer.residual else "plain"
        return None if kind in library else Blocks(16, 32, 4, 2)

    assert is_direct(fuse_small_linears(llama_mlp(), rows, SHAPES, choose)) is expected
    assert not is_direct(llama_mlp())


def test_what_is_read_through_a_view_can_be_joined() -> None:
    def joined(x):  # type: ignore[no-untyped-def]
        left, right = torch.functional.split(x + 1, [2, 2], -1)
        return (left * right,)

    def apart(x, weight):  # type: ignore[no-untyped-def]
        return ((F.linear(x + 1, weight, None) * 2).to(torch.float32),)

    def unknown(x):  # type: ignore[no-untyped-def]
        return (torch.tanh(x),)

    def linear(x, weight):  # type: ignore[no-untyped-def]
        return (F.linear(x + 1, weight, None).to(torch.float32),)

    answers = [
        is_direct(Program(fx.symbolic_trace(one), ("x",), (), ("y",))) for one in (joined, apart, unknown)
    ]
    assert answers == [False, False, False]
    assert is_direct(Program(fx.symbolic_trace(linear), ("x",), (("weight",),), ("y",)))
