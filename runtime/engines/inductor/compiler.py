"""Compiled pieces: one function for a program and a size, whichever layers share the program."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import fx
from torch._dynamo.source import ConstantSource
from torch._guards import TracingContext, tracing
from torch._inductor import CompiledArtifact, config, standalone_compile  # type: ignore[attr-defined]
from torch._subclasses import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, StatelessSymbolicContext

from cleave.errors import reason
from cleave.runtime.engines.inductor.operators import rms_norm
from cleave.runtime.engines.inductor.program import Program

_log = logging.getLogger("cleave")
_RECORDING = threading.Lock()
"""Inductor records what it compiles and loads for the whole process: two models must not do so at a time."""
_HINT = 2048
"""Rows that Inductor takes for typical where it compiles for any number of them."""

Tensor = torch.Tensor
Compiled = Callable[..., Sequence[Tensor]]


@dataclass(frozen=True, slots=True)
class Shape:
    """What the compiler is told of a tensor. The first dimension of an input is the compiler's to set."""

    sizes: tuple[int, ...]
    dtype: torch.dtype


class Compiler:
    """Compiles programs by Inductor.

    Dynamo has no part in it, because a program is a graph already: calls check no guards, and nothing is
    compiled again behind anybody's back.
    """

    def __init__(self, device: torch.device, folder: Path | None, **options: Any) -> None:
        """`folder` has functions that were kept before, or is None. `options` are Inductor's own."""
        self._device = device
        self._folder = folder
        self._options = options
        self.compilations = 0
        """Functions that were compiled, and not found in the folder."""

    def compile(
        self,
        program: Program,
        name: str,
        rows: int | None,
        inputs: Sequence[Shape],
        weights: Sequence[Shape],
        keep: Path | None = None,
    ) -> Compiled:
        """A function that takes the program's inputs and weights and gives its outputs.

        It is for inputs of exactly `rows` rows; None: of any number from two on. `name` tells the programs
        of a model apart in the folder. `keep` is a folder that the function is written to.
        """
        file = file_name(name, rows)
        if self._folder is not None and (found := _load(self._folder / file, self._device)) is not None:
            return found
        from cleave.runtime.engines.inductor.lowering import lower_add_product  # takes seconds

        lower_add_product()
        mode = FakeTensorMode(shape_env=ShapeEnv())
        examples = self._stand_ins(program, rows, inputs, weights, mode)
        module = _TakeApart(program.module).transform()
        with mode:
            _Annotate(module).run(*examples)
        with _RECORDING, tracing(TracingContext(mode)):
            compiled = standalone_compile(
                module,
                examples,
                dynamic_shapes="from_tracing_context",
                options={"config_patches": self._options},
            )
        self.compilations += 1
        if keep is not None:
            _save(compiled, keep / file)
        return compiled

    def _stand_ins(
        self,
        program: Program,
        rows: int | None,
        inputs: Sequence[Shape],
        weights: Sequence[Shape],
        mode: FakeTensorMode,
    ) -> list[Any]:
        """Tensors without data, the inputs with the first dimension that is compiled for."""
        sizes: list[tuple[Any, ...]] = []
        dimensions: dict[str, Any] = {}
        for name, shape in zip(program.inputs, inputs, strict=True):
            dimension = "rows" if name == "logit_rows" else "tokens"
            if dimension not in dimensions:
                dimensions[dimension] = _any_number(mode, dimension) if rows is None else rows
            sizes.append((dimensions[dimension], *shape.sizes[1:]))
        sizes += [shape.sizes for shape in weights]
        with mode:
            return [
                torch.empty(size, dtype=shape.dtype, device=self._device)
                for size, shape in zip(sizes, (*inputs, *weights), strict=True)
            ]


class _TakeApart(fx.Transformer):
    """Puts torch's own functions in the place of `rms_norm`; Inductor's cache refuses graphs with others."""

    def call_function(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if target is rms_norm:
            return rms_norm(*args, **kwargs)
        return super().call_function(target, args, kwargs)


class _Annotate(fx.Interpreter):
    """Writes into every node what it gives, as Dynamo does; Inductor's cache goes by it."""

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        n.meta["example_value"] = result
        return result


def file_name(name: str, rows: int | None) -> str:
    """Where the function of a program for a number of rows is kept."""
    return f"{name}-{'any' if rows is None else rows}.bin"


def _any_number(mode: FakeTensorMode, name: str) -> Any:
    context: Any = StatelessSymbolicContext(dynamic_sizes=[DimDynamic.DYNAMIC])
    stand_in = mode.from_tensor(torch.empty(_HINT), symbolic_context=context, source=ConstantSource(name))
    return stand_in.shape[0]


def _load(file: Path, device: torch.device) -> Compiled | None:
    """What was compiled before; None where that is not there, or of another torch."""
    if not file.is_file():
        return None
    # For a GPU Inductor starts processes to compile kernels in, one a core, though all of them are in the
    # file; and where a program ends soon, it waits until they have started. For a CPU it starts threads.
    workers = {"compile_threads": 1} if device.type == "cuda" else {}
    try:
        with _RECORDING, config.patch(workers):
            loaded: Compiled = CompiledArtifact.load(path=str(file), format="binary")
    except Exception as error:  # it asserts where the file is of another torch, and fails where it is damaged
        _log.info("%s is compiled again: %s", file.name, reason(error))
        return None
    return loaded


def _save(compiled: Any, file: Path) -> None:
    """Keep a compiled function. Where Inductor cannot, the next start compiles it again."""
    try:
        compiled.save(path=str(file), format="binary")
    except (RuntimeError, AssertionError) as error:
        _log.warning("%s cannot be kept, and is compiled at every start: %s", file.name, reason(error))
