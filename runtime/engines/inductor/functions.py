"""The compiled functions of a model: three programs, each for the numbers of rows that it is run with."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from cleave.export.artifact import Artifact
from cleave.export.pieces import Piece, cut
from cleave.export.widening import widen
from cleave.runtime.engines.inductor import small
from cleave.runtime.engines.inductor.add_linear import add_in_place
from cleave.runtime.engines.inductor.choose import Chooser, Linear
from cleave.runtime.engines.inductor.compiler import Compiled, Compiler, Shape
from cleave.runtime.engines.inductor.direct import is_direct
from cleave.runtime.engines.inductor.fix import fix_rows
from cleave.runtime.engines.inductor.fuse import fuse_small_linears
from cleave.runtime.engines.inductor.join import join_linears
from cleave.runtime.engines.inductor.pick import pick_first
from cleave.runtime.engines.inductor.program import Program, program_of
from cleave.runtime.engines.residual import check_observable, with_residual
from cleave.runtime.triton_launch import compiled_side_by_side

SMALL = {"cuda": (1, 2, 4, 8, 16, 32), "cpu": (1,)}
"""Numbers of rows that are compiled for on their own; all others share one function a program."""
BANDS = (64, 128)
"""On a GPU steps of more rows than those, up to so many, share own kernels where these are faster."""
_KERNEL_SOURCES = (
    "choose.py",
    "compiler.py",
    "direct.py",
    "fuse.py",
    "small.py",
    "small_kernel.py",
    "small_launch.py",
)
"""What decides, beside the programs for any number of rows, what is compiled for few."""
_CHOSEN = "chosen.json"
"""In a built folder: the kernels for few rows."""


class Functions:
    """What is compiled of an artifact. Pieces of the same structure share a program and its functions."""

    def __init__(
        self,
        artifact: Artifact,
        device: torch.device,
        folder: Path | None = None,
        *,
        deterministic: bool = False,
    ) -> None:
        """Translate the pieces; nothing is compiled yet. `folder` has what `compile_all` made, or is None.

        `deterministic`: one function for all numbers of rows, and a row's bits do not depend on the others.
        Raises ArtifactError where the graph cannot be cut, EngineError where it cannot be translated.
        """
        self.pieces = _pieces(artifact, is_wide=device.type == "cpu")
        self._shapes = {name: tensor.shape for name, tensor in artifact.tensors.items()}
        self._dtype = getattr(torch, artifact.manifest.dtype) if device.type == "cuda" else torch.float32
        self._deterministic = deterministic
        self.small: tuple[int, ...] = () if deterministic else SMALL[device.type]
        """Numbers of rows that have a function of their own."""
        self._compiler = Compiler(device, folder)
        self.chooser: Chooser | None = None
        if device.type == "cuda" and self._dtype.itemsize == 2 and not deterministic:
            self.chooser = Chooser(self._dtype, device, None if folder is None else folder / _CHOSEN)
        self.bands = BANDS if self.chooser is not None else ()
        """The most rows of steps that share own kernels."""
        self._last = len(self.pieces) - 1
        self._programs = {self._role(index): self._program(index) for index in {0, 1, self._last}}
        self._compiled: dict[tuple[str, int | None], Compiled] = {}

    @property
    def compilations(self) -> int:
        """Functions that were compiled, and not found in the folder."""
        return self._compiler.compilations

    @property
    def least_rows(self) -> int:
        """Steps of fewer tokens have to be padded: the function for any number of rows takes two or more."""
        return 2 if self._deterministic else 1

    def rows_for(self, tokens: int) -> int | None:
        """The rows that a step of `tokens` tokens is compiled for; None: any number from two on."""
        return tokens if tokens in self.small else None

    def band_for(self, tokens: int) -> int | None:
        """The same for steps that are captured, which also have the bands.

        Pieces of a band are run as they are, for any number of rows in it. That costs the host more than
        compiled ones, and a replay nothing.
        """
        fits = (band for band in self.bands if self.small[-1] < tokens <= band)
        return self.rows_for(tokens) or next(fits, None)

    def get(self, index: int, rows: int | None) -> Compiled:
        """The function of piece `index`, for inputs of `rows` rows; if that is a band, of those in it.

        It takes inputs, then weights.
        """
        role = self._role(index)
        function = self._compiled.get((role, rows))
        if function is None:
            function = self._compiled[role, rows] = self._make(index, rows)
        return function

    @property
    def sources(self) -> dict[str, str]:
        """What is compiled, as text: the code of each program, what Inductor is told of it, and own kernels,
        where it may call them.
        """
        programs = {
            self._role(index): str(self._program_for(index, None).module.code) for index in {0, 1, self._last}
        }
        programs["lowering"] = _source("lowering.py")
        if self.chooser is None and not self._deterministic:
            return programs
        return programs | {"kernels": "".join(_source(name) for name in _KERNEL_SOURCES)}

    @property
    def planned(self) -> list[tuple[str, int | None]]:
        """What `compile_all` makes: a function, and the rows it is for; None: any number from two on."""
        return [(self._role(index), rows) for index, rows in self._all()]

    def compile_all(self, folder: Path, done: Callable[[str, int | None], None] | None = None) -> None:
        """Make every function and keep it in `folder`, an empty one; `done` is told of each.

        The kernels for few rows are compiled in other threads while Inductor compiles for any number. For the
        bands nothing else is compiled.
        """
        layers = self._small_linears() if self.chooser is not None else []
        with contextlib.ExitStack() as stack:
            if self.chooser is not None:
                stack.enter_context(compiled_side_by_side())
                self.chooser.compile(layers)
            for index, rows in self._all():
                if rows is not None:
                    stack.close()
                self._make(index, rows, folder)
                if done is not None:
                    done(self._role(index), rows)
        if self.chooser is not None:
            for layer in layers:
                self.chooser(layer)
            self.chooser.keep(folder / _CHOSEN)

    def _all(self) -> list[tuple[int, int | None]]:
        """One piece of each program, and rows; those for any number come first."""
        pieces = sorted({0, 1, self._last})
        return [(index, None) for index in pieces] + [
            (index, rows) for index in pieces for rows in self.small
        ]

    def _make(self, index: int, rows: int | None, keep: Path | None = None) -> Compiled:
        program = self._program_for(index, rows)
        if is_direct(program):
            return program.module.forward
        if rows in self.bands:  # Inductor has something to join: no own kernel was chosen, or that is not all
            return self.get(index, None)
        return self._compiler.compile(program, self._role(index), rows, *self._examples(index), keep=keep)

    def _small_linears(self) -> list[Linear]:
        """Every layer that the chooser will be asked for; which they are does not depend on its answers."""
        layers: dict[Linear, None] = {}
        for index in sorted({0, 1, self._last}):
            for rows in (*self.small, *self.bands):
                fuse_small_linears(*self._few_rows(index, rows), layers.setdefault)
        return list(layers)

    def weights(self, index: int) -> list[tuple[str, ...]]:
        """For each weight that piece `index` takes, the tensors that are one below the other in it."""
        named = self.pieces[index].weights
        return [tuple(named[name] for name in names) for names in self._programs[self._role(index)].weights]

    def give_residual(self) -> None:
        """Let the last piece give its residual too. Raises EngineError where it cannot be told apart."""
        if len(self.pieces[-1].outputs) > 1:
            return
        check_observable(self.pieces)
        self.pieces[-1] = with_residual(self.pieces[-1])
        self._programs["last-observed"] = self._program(self._last)

    def _role(self, index: int) -> str:
        if index == self._last:
            return "last" if len(self.pieces[-1].outputs) == 1 else "last-observed"
        return "middle" if index else "first"

    def _program(self, index: int) -> Program:
        piece = self.pieces[index]
        where = f"the piece after layer {index - 1}" if index else "the piece before layer 0"
        rows = {name: self._shapes[tensor][0] for name, tensor in piece.weights.items()}
        program = join_linears(program_of(piece, where), rows)
        return fix_rows(pick_first(program), where) if self._deterministic else program

    def _program_for(self, index: int, rows: int | None) -> Program:
        """The program of a piece, for few rows with the linear layers that own kernels compute faster.

        Steps of few rows are decode steps, in which every row is asked for.
        """
        program = self._programs[self._role(index)]
        if rows is None:
            picked = pick_first(program)
            return add_in_place(picked, self._owned(index), self._weight_shapes(index, picked))
        if self.chooser is None:
            return program
        return fuse_small_linears(*self._few_rows(index, rows), self.chooser)

    def _few_rows(self, index: int, rows: int) -> tuple[Program, int, dict[str, tuple[int, ...]]]:
        """What `fuse_small_linears` is told of a piece."""
        program = self._programs[self._role(index)]
        return program, rows, self._weight_shapes(index, program)

    def _weight_shapes(self, index: int, program: Program) -> dict[str, tuple[int, ...]]:
        """The shapes of the weights of a piece, by their placeholders in `program`."""
        placeholders = [node.name for node in program.module.graph.nodes if node.op == "placeholder"]
        weights = self._examples(index)[1]
        return dict(zip(placeholders[len(program.inputs) :], (one.sizes for one in weights), strict=True))

    def _owned(self, index: int) -> dict[str, int]:
        """The inputs of a piece that nobody reads after it, and their widths: the residual.

        None where more than that is carried from piece to piece: two of those could be one tensor.
        """
        if any(len(piece.hands_on) != 1 for piece in self.pieces[:-1]):
            return {}
        role = self._role(index)
        same = [piece for number, piece in enumerate(self.pieces) if self._role(number) == role]
        (carried,) = self.pieces[0].hands_on
        if any(carried in piece.hands_on.values() for piece in same):
            return {}
        inputs = zip(self.pieces[index].inputs, self._examples(index)[0], strict=True)
        return {name: shape.sizes[1] for name, shape in inputs if name == carried}

    def _examples(self, index: int) -> tuple[list[Shape], list[Shape]]:
        """Inputs and weights of a piece as the compiler is told of them."""
        widths = {
            value.name: tuple(dim.dim_value for dim in value.type.tensor_type.shape.dim[1:])
            for value in self.pieces[index].model.graph.input
        }
        inputs = [
            Shape((0, *widths[name]), torch.int64 if name == "logit_rows" else self._dtype)
            for name in self.pieces[index].inputs
        ]
        weights = []
        for names in self.weights(index):
            rows = sum(self._shapes[name][0] for name in names)
            weights.append(Shape((rows, *self._shapes[names[0]][1:]), self._dtype))
        return inputs, weights


def _source(name: str) -> str:
    return Path(small.__file__).with_name(name).read_text("utf-8")


def _pieces(artifact: Artifact, *, is_wide: bool) -> list[Piece]:
    """The pieces; in float32 where the device has no narrower arithmetic. Middle ones share one model."""
    pieces = cut(artifact.batchful_graph())
    if not is_wide:
        return pieces
    wide = {id(piece.model): widen(piece.model) for piece in pieces}
    return [replace(piece, model=wide[id(piece.model)]) for piece in pieces]
