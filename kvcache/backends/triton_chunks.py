"""The chunks of a step that have more than one token: RoPE and append, and attention over tiles of rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch

from cleave.kvcache.backends.triton_buffer import Sections, aligned
from cleave.kvcache.backends.triton_kernel import layout_of
from cleave.kvcache.backends.triton_layer import Layer
from cleave.kvcache.backends.triton_work import TILE, Kind
from cleave.kvcache.step import StepPlan

Tensor = torch.Tensor
Bools = npt.NDArray[np.bool_]
Int64 = npt.NDArray[np.int64]


class Chunks(Protocol):
    """What attends to the chunks that the decode kernel leaves alone."""

    def taken(self, counts: Int64) -> Bools:
        """[chunks] of a step whose chunks have so many tokens: which of them are not the decode kernel's.

        None is where all have one token.
        """

    def plan(self, step: StepPlan, taken: Bools, tables: Int64, send: Sections) -> Any:
        """What `run` needs to know of a step with at least one such chunk.

        `tables` [chunks]: where each chunk's page table begins. Numbers for the GPU go into `send`.
        """

    def run(self, planned: Any, layer: int, q: Tensor, k: Tensor, v: Tensor, out: Tensor) -> None:
        """Launch RoPE, append and attention of these chunks."""


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows of a step whose keys and values the append kernel takes."""

    count: int
    """Of the whole step."""
    positions: Tensor
    slots: Tensor
    """[count], -1 for rows that the decode kernel appends."""

    @classmethod
    def of(cls, step: StepPlan, taken: Bools, send: Sections) -> Rows:
        """Those of the chunks that are `taken`."""
        slots = np.where(np.repeat(taken, np.diff(step.offsets)), step.slots, -1)
        return cls(step.tokens, send.add(step.positions), send.add(slots))

    @staticmethod
    def room(tokens: int) -> int:
        """Numbers of so many of them, at most."""
        return 2 * aligned(tokens)

    def append(self, own: Layer, q: Tensor, k: Tensor, v: Tensor, turned: Tensor | None = None) -> None:
        """Launch RoPE and append of k and v, and RoPE of q to `turned` where that is given."""
        kernel = own.append if turned is None else own.append_turned
        turned = q if turned is None else turned
        strides = q.stride(0), k.stride(0), v.stride(0)
        blocks = -(-self.count // own.tuning.append.rows)
        kernel.launch(
            (blocks, own.tuning.shares, 1), layout_of(q, k, v, turned), q, k, v, turned, *strides, self.count,
            own.keys, own.values, own.cos, own.sin, self.positions, self.slots,
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Planned:
    rows: Rows
    tiles: tuple[Tensor, ...]
    """[tiles, TILE], flat, of each kind."""


class TritonChunks:
    """Attention of chunks by the own kernel."""

    def __init__(self, kinds: Sequence[Kind], layers: Sequence[Layer], pages: Tensor) -> None:
        """`pages`: where the page tables of a step are on the GPU."""
        self._kinds, self._layers, self._pages = kinds, layers, pages

    @staticmethod
    def room(kinds: Sequence[Kind], tokens: int, chunks: int) -> int:
        """Numbers of a step, at most."""
        return Rows.room(tokens) + sum(
            aligned((tokens // kind.tile_tokens + chunks) * TILE) for kind in kinds
        )

    def taken(self, counts: Int64) -> Bools:
        """Those of more than one token."""
        return counts > 1

    def plan(self, step: StepPlan, taken: Bools, tables: Int64, send: Sections) -> _Planned:
        """Divide them into tiles."""
        rows, chunks = Rows.of(step, taken, send), np.flatnonzero(taken)
        tiles = [kind.prefill_tiles(step, chunks, tables).reshape(-1) for kind in self._kinds]
        return _Planned(rows, tuple(map(send.add, tiles)))

    def run(self, planned: _Planned, layer: int, q: Tensor, k: Tensor, v: Tensor, out: Tensor) -> None:
        """Launch RoPE and append, and then attention."""
        own = self._layers[layer]
        tiles = planned.tiles[own.kind]
        planned.rows.append(own, q, k, v)
        own.prefill.launch(
            (own.spec.kv_heads, len(tiles) // TILE, 1), layout_of(q, k, v, out),
            q, out, q.stride(0), own.keys, own.values, own.cos, own.sin, tiles, self._pages,
        )  # fmt: skip
