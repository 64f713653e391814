"""Sums that overwrite the residual: where they may, they copy nothing; elsewhere everything is as it was."""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import fx
from torch._inductor import config
from torch._inductor.utils import run_and_get_code

from cleave.export.artifact import Artifact
from cleave.runtime.compare.trace import overwrite, to_numpy
from cleave.runtime.engines.engine import EngineOptions, create_engine
from cleave.runtime.engines.inductor.add_linear import ADD_LINEAR, add_in_place
from cleave.runtime.engines.inductor.compiler import Compiler, Shape
from cleave.runtime.engines.inductor.engine import InductorEngine
from cleave.runtime.engines.inductor.functions import Functions
from cleave.runtime.engines.inductor.operators import rms_norm
from cleave.runtime.engines.inductor.program import Program

ROWS, WIDTH = 5, 8
CPU = torch.device("cpu")
WEIGHTS = {"square": (WIDTH, WIDTH), "other": (WIDTH, WIDTH), "one": (1, WIDTH), "scale": (WIDTH,)}


class Drawn:
    """A program over the inputs `residual` and `x`, drawn node by node."""

    def __init__(self) -> None:
        self.graph = fx.Graph()
        self.residual, self.x = self.graph.placeholder("residual"), self.graph.placeholder("x")
        self.weights = {name: self.graph.placeholder(name) for name in WEIGHTS}

    def call(self, target: Any, *args: Any) -> fx.Node:
        return self.graph.call_function(target, args)

    def linear(self, x: fx.Node, weight: str = "square") -> fx.Node:
        return self.call(F.linear, x, self.weights[weight], None)

    def add(self, residual: fx.Node, x: fx.Node, weight: str = "square") -> fx.Node:
        return self.call(operator.add, residual, self.linear(x, weight))

    def norm(self, x: fx.Node) -> fx.Node:
        return self.call(rms_norm, x, self.weights["scale"], 1e-5)

    def gives(self, *outputs: fx.Node) -> Program:
        self.graph.output(outputs)
        names = tuple((name,) for name in WEIGHTS)
        module = fx.GraphModule(torch.nn.Module(), self.graph)
        return Program(module, ("residual", "x"), names, tuple(f"out_{i}" for i in range(len(outputs))))


def in_place(program: Program) -> Program:
    return add_in_place(program, {"residual": WIDTH}, WEIGHTS)


def taken(program: Program) -> int:
    return sum(node.target is ADD_LINEAR for node in program.module.graph.nodes)


def tensors() -> list[torch.Tensor]:
    """The inputs, then the weights."""
    make = torch.Generator().manual_seed(0)
    sizes = [(ROWS, WIDTH), (ROWS, WIDTH), *WEIGHTS.values()]
    return [torch.randn(size, generator=make, dtype=torch.float64) * 0.5 for size in sizes]


def check_same(program: Program) -> None:
    """In place the program gives what it gives otherwise, and overwrites nothing but the residual."""
    before, inputs = tensors(), tensors()
    wanted = program.module(*tensors())
    for got, expected in zip(in_place(program).module(*inputs), wanted, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-6)
    for tensor, was in zip(inputs[1:], before[1:], strict=True):
        assert torch.equal(tensor, was)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_the_operator_adds_the_product_where_the_residual_lies(dtype: torch.dtype) -> None:
    make = torch.Generator().manual_seed(0)
    residual, x, weight = (
        torch.randn(size, generator=make, dtype=torch.float64).to(dtype)
        for size in ((7, 24), (7, 32), (24, 32))
    )
    exact = residual.double() + x.double() @ weight.double().T
    sizes = residual.double().abs() + x.double().abs() @ weight.double().abs().T
    # 33 numbers are summed in float32, in any order; the sum is rounded once.
    bound = 33 * torch.finfo(torch.float32).eps * sizes + torch.finfo(dtype).eps * exact.abs()
    assert ADD_LINEAR(residual, x, weight) is None
    assert ((residual.double() - exact).abs() <= bound).all()
    torch.library.opcheck(ADD_LINEAR, (residual, x, weight))


def a_layer() -> Program:
    drawn = Drawn()
    first = drawn.add(drawn.residual, drawn.x)
    second = drawn.add(first, drawn.norm(first), "other")
    return drawn.gives(drawn.norm(second), second)


def rows_of_a_layer() -> Program:
    """As behind the last layer, where the program takes rows of its own first."""
    drawn = Drawn()
    index = drawn.call(torch.tensor, [3, 0])
    residual, x = (drawn.call(F.embedding, index, value) for value in (drawn.residual, drawn.x))
    first = drawn.add(residual, x)
    return drawn.gives(drawn.add(first, drawn.norm(first)))


@pytest.mark.parametrize("layer", [a_layer, rows_of_a_layer])
def test_both_sums_of_a_layer_are_taken(layer: Callable[[], Program]) -> None:
    program = layer()
    assert taken(in_place(program)) == 2
    assert taken(program) == 0  # the program that was given is as it was
    check_same(program)


def given_back(drawn: Drawn) -> tuple[fx.Node, ...]:
    return drawn.add(drawn.residual, drawn.x), drawn.residual


def read_later(drawn: Drawn) -> tuple[fx.Node, ...]:
    added = drawn.add(drawn.residual, drawn.x)
    return added, drawn.norm(drawn.residual)


def read_later_as_a_view(drawn: Drawn) -> tuple[fx.Node, ...]:
    view = drawn.graph.call_method("reshape", (drawn.residual, (-1, WIDTH)))
    return drawn.add(drawn.residual, drawn.x), drawn.norm(view)


def halves_read_later(drawn: Drawn) -> tuple[fx.Node, ...]:
    split = drawn.call(torch.split, drawn.residual, [WIDTH // 2, WIDTH // 2], -1)
    half = drawn.call(operator.getitem, split, 0)
    return drawn.add(drawn.residual, drawn.x), drawn.call(torch.neg, half)


def cast_to_its_own_dtype(drawn: Drawn) -> tuple[fx.Node, ...]:
    same = drawn.graph.call_method("to", (drawn.residual, torch.float64))
    return drawn.add(drawn.residual, drawn.x), drawn.norm(same)


def added_to_itself(drawn: Drawn) -> tuple[fx.Node, ...]:
    return (drawn.add(drawn.residual, drawn.residual),)


def spread(drawn: Drawn) -> tuple[fx.Node, ...]:
    return (drawn.add(drawn.residual, drawn.x, "one"),)


def added_to_another_input(drawn: Drawn) -> tuple[fx.Node, ...]:
    return (drawn.add(drawn.x, drawn.residual),)


def added_to_a_weight(drawn: Drawn) -> tuple[fx.Node, ...]:
    return (drawn.add(drawn.weights["scale"], drawn.x),)


def with_a_bias(drawn: Drawn) -> tuple[fx.Node, ...]:
    product = drawn.call(F.linear, drawn.x, drawn.weights["square"], drawn.weights["scale"])
    return (drawn.call(operator.add, drawn.residual, product),)


def normed_before_the_sum(drawn: Drawn) -> tuple[fx.Node, ...]:
    """As in Gemma 2 and OLMo 2."""
    return (drawn.call(operator.add, drawn.residual, drawn.norm(drawn.linear(drawn.x))),)


def scaled_before_the_sum(drawn: Drawn) -> tuple[fx.Node, ...]:
    """As in Granite."""
    scaled = drawn.call(operator.mul, drawn.linear(drawn.x), 0.25)
    return (drawn.call(operator.add, drawn.residual, scaled),)


def product_given_too(drawn: Drawn) -> tuple[fx.Node, ...]:
    product = drawn.linear(drawn.x)
    return drawn.call(operator.add, drawn.residual, product), product


@pytest.mark.parametrize(
    "draw",
    [
        given_back,
        read_later,
        read_later_as_a_view,
        halves_read_later,
        cast_to_its_own_dtype,
        added_to_itself,
        spread,
        added_to_another_input,
        added_to_a_weight,
        with_a_bias,
        normed_before_the_sum,
        scaled_before_the_sum,
        product_given_too,
    ],
)
def test_what_may_not_be_overwritten_is_left_alone(draw: Callable[[Drawn], tuple[fx.Node, ...]]) -> None:
    drawn = Drawn()
    program = drawn.gives(*draw(drawn))
    assert in_place(program).module.code == program.module.code
    check_same(program)


@st.composite
def programs(draw: st.DrawFn) -> Program:
    """Sums of linear layers and residuals, with other readers, views and copies among them."""
    drawn = Drawn()
    values = [drawn.residual, drawn.x]
    for _ in range(draw(st.integers(1, 8))):
        first = draw(st.sampled_from([drawn.residual, values[-1], *values]))
        second = draw(st.sampled_from([drawn.x, *values]))
        kind = draw(st.sampled_from(["sum", "sum", "sum", "norm", "linear", "view", "rows", "plain sum"]))
        if kind == "sum":
            weight = draw(st.sampled_from(["square", "other", "one"]))
            parts = [first, drawn.linear(second, weight)]
            if draw(st.booleans()):  # somebody may read the residual between the product and the sum
                values.append(drawn.norm(first))
            made = drawn.call(operator.add, *draw(st.permutations(parts)))
        elif kind == "norm":
            made = drawn.norm(first)
        elif kind == "linear":
            made = drawn.linear(first)
        elif kind == "view":
            made = drawn.graph.call_method("reshape", (first, (-1, WIDTH)))
        elif kind == "rows":
            made = drawn.call(F.embedding, drawn.call(torch.tensor, list(range(ROWS))[::-1]), first)
        else:
            made = drawn.call(operator.add, first, second)
        values.append(made)
    return drawn.gives(*draw(st.lists(st.sampled_from(values[1:]), max_size=2)), values[-1])


@given(programs())
@settings(max_examples=300, deadline=None)
def test_any_program_gives_the_same_in_place(program: Program) -> None:
    check_same(program)


@pytest.mark.slow
def test_compiled_it_copies_nothing() -> None:
    shapes = [Shape((0, WIDTH), torch.float32)] * 2, [Shape(size, torch.float32) for size in WEIGHTS.values()]
    program = a_layer()

    def compiled(program: Program) -> tuple[Any, str]:
        with config.patch(force_disable_caches=True):
            function, codes = run_and_get_code(Compiler(CPU, None).compile, program, "middle", None, *shapes)
        return function, "".join(codes)

    plain, plain_code = compiled(program)
    function, code = compiled(in_place(program))
    assert "addmm(" in plain_code
    assert code.count("torch.Tensor.addmm_(arg") == 2  # on the input itself
    assert not any(word in code for word in ("addmm(", "clone", "copy_", "ops.cleave"))
    for rows in (2, 17):
        weights = [tensor.float() for tensor in tensors()[2:]]
        residual, x = torch.randn(rows, WIDTH), torch.randn(rows, WIDTH)
        wanted = plain(residual, x, *weights)
        normed, given = function(residual, x, *weights)
        assert given.data_ptr() == residual.data_ptr()
        torch.testing.assert_close(given, wanted[1])
        torch.testing.assert_close(normed, wanted[0])


def sums(functions: Functions) -> list[int]:
    """For the first, the middle and the last program: how many sums are taken."""
    return [taken(functions._program_for(index, None)) for index in (0, 1, len(functions.pieces) - 1)]


def test_a_model_that_needs_what_it_carries_later_keeps_it(artifact: Callable[[str], Path]) -> None:
    functions = Functions(Artifact.open(artifact("gqa")), CPU)
    assert sums(functions) == [0, 2, 2]
    pieces = list(functions.pieces)
    for index, hands_on in (
        (1, {"carried_0": "carried_0"}),  # the embedding, say, for every layer
        (0, {"carried_0": "inputs_embeds", "carried_1": "carry_1"}),  # which may be one tensor
    ):
        functions.pieces = [*pieces]
        functions.pieces[index] = replace(pieces[index], hands_on=hands_on)
        assert sums(functions)[:2] == [0, 0]


def test_fixed_rows_and_few_rows_are_left_alone(artifact: Callable[[str], Path]) -> None:
    opened = Artifact.open(artifact("gqa"))
    assert sums(Functions(opened, CPU, deterministic=True)) == [0, 0, 0]
    assert taken(Functions(opened, CPU)._program_for(1, 1)) == 0


class _Observer:
    """Attention that hands q on, and an observer that may write into the residual."""

    def __init__(self, overwritten: int | None = None) -> None:
        self._overwritten = overwritten
        self.places: list[int] = []
        self.seen: list[np.ndarray] = []

    def run(self, layer: int, q: Any, k: Any, v: Any, out: Any) -> None:
        overwrite(out, to_numpy(q))

    def residual(self, layer: int, residual: Any) -> None:
        if isinstance(residual, torch.Tensor):
            self.places.append(residual.data_ptr())
        if layer == self._overwritten:
            overwrite(residual, np.ones(residual.shape, np.float32))
        self.seen.append(to_numpy(residual).copy())


@pytest.mark.slow
def test_one_buffer_holds_the_residual_of_all_layers(artifact: Callable[[str], Path]) -> None:
    opened = Artifact.open(artifact("gqa"))
    options = EngineOptions(max_tokens=64, device="cpu", threads=1)
    engine = InductorEngine(opened, options)
    other = create_engine("onnxruntime", opened, replace(options, device=None))
    token_ids, rows = np.arange(9), np.array([2, 8])
    for overwritten in (None, 0):  # what an observer writes is what the next piece reads
        watched = []
        for made in (engine, other):
            observer = _Observer(overwritten)
            made.observe(observer)
            logits = made.run(token_ids, rows, observer).copy()
            watched.append([*observer.seen, logits])
            if made is engine:
                assert len(observer.places) == opened.manifest.num_layers + 1
                assert len(set(observer.places)) == 1
        for got, wanted in zip(*watched, strict=True):
            np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-4)
    engine.close()
    other.close()
