"""Compiled pieces: one function for a program and a size, whichever layers share the program."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import fx
from torch._dynamo.source import ConstantSource
from torch._guards import TracingContext, tracing
from torch._inductor import CompiledArtifact, standalone_compile  # type: ignore[attr-defined]
from torch._subclasses import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, StatelessSymbolicContext

from cleave.errors import reason
from cleave.runtime.engines.inductor.program import Program

_log = logging.getLogger("cleave")
_HINT = 2048
"""Rows that Inductor takes for typical where it compiles for any number of them."""

Tensor = torch.Tensor
Compiled = Callable[..., Sequence[Tensor]]


class Compiler:
    """Compiles programs by Inductor, and keeps the results in a folder.

    Dynamo has no part in it, because a program is a graph already: calls check no guards, and nothing is
    compiled again behind anybody's back.
    """

    def __init__(self, folder: Path | None, options: Mapping[str, Any] | None = None) -> None:
        """`folder` keeps the functions from one start to the next; None keeps none. `options` are
        Inductor's own.
        """
        self._folder = folder
        self._options = dict(options or {})
        self.compilations = 0
        """Functions that were compiled, and not found in the folder."""

    def compile(
        self,
        program: Program,
        name: str,
        rows: int | None,
        inputs: Sequence[Tensor],
        weights: Sequence[Tensor],
    ) -> Compiled:
        """A function that takes the program's inputs and weights and gives its outputs.

        It is for inputs of exactly `rows` rows; None: of any number from two on. Of the example `inputs`
        only dtype, device and the dimensions after the first count. `name` tells the programs of a model
        apart in the folder.
        """
        file = None
        if self._folder is not None:
            file = self._folder / f"{name}-{'any' if rows is None else rows}.bin"
            if (found := _load(file)) is not None:
                return found
        mode = FakeTensorMode(shape_env=ShapeEnv())
        examples: list[Any] = _stand_ins(program, rows, inputs, mode)
        examples += [mode.from_tensor(weight, static_shapes=True) for weight in weights]
        module = copy.deepcopy(program.module)
        with mode:
            _Annotate(module).run(*examples)
        with tracing(TracingContext(mode)):
            compiled = standalone_compile(
                module,
                examples,
                dynamic_shapes="from_tracing_context",
                options={"config_patches": self._options},
            )
        self.compilations += 1
        if file is not None:
            _save(compiled, file)
        return compiled


class _Annotate(fx.Interpreter):
    """Writes into every node what it gives, as Dynamo does; Inductor's cache goes by it."""

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        n.meta["example_value"] = result
        return result


def _stand_ins(
    program: Program, rows: int | None, inputs: Sequence[Tensor], mode: FakeTensorMode
) -> list[Tensor]:
    """Tensors without data, with the first dimension that is compiled for."""
    dimensions: dict[str, Any] = {}
    made = []
    for name, tensor in zip(program.inputs, inputs, strict=True):
        dimension = "rows" if name == "logit_rows" else "tokens"
        if dimension not in dimensions:
            dimensions[dimension] = _any_number(mode, dimension) if rows is None else rows
        with mode:
            shape = (dimensions[dimension], *tensor.shape[1:])
            made.append(torch.empty(shape, dtype=tensor.dtype, device=tensor.device))
    return made


def _any_number(mode: FakeTensorMode, name: str) -> Any:
    context: Any = StatelessSymbolicContext(dynamic_sizes=[DimDynamic.DYNAMIC])
    stand_in = mode.from_tensor(torch.empty(_HINT), symbolic_context=context, source=ConstantSource(name))
    return stand_in.shape[0]


def _load(file: Path) -> Compiled | None:
    """What was compiled before; None where that is not there, or of another torch."""
    if not file.is_file():
        return None
    try:
        loaded: Compiled = CompiledArtifact.load(path=str(file), format="binary")
    except Exception as error:  # it asserts where the file is of another torch, and fails where it is damaged
        _log.info("%s is compiled again: %s", file.name, reason(error))
        return None
    return loaded


def _save(compiled: Any, file: Path) -> None:
    """Keep a compiled function. Where Inductor cannot, the next start compiles it again."""
    file.parent.mkdir(parents=True, exist_ok=True)
    try:
        compiled.save(path=str(file), format="binary")
    except (RuntimeError, AssertionError) as error:
        _log.warning("%s cannot be kept, and is compiled at every start: %s", file.name, reason(error))
