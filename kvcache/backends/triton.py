"""The attention backend for NVIDIA GPUs: own kernels, one launch a layer in a decode step."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any

import numpy as np

from cleave.errors import AttentionError, MissingPackage
from cleave.kvcache.backend import CacheShape
from cleave.kvcache.backends.triton_tuning import Tuning, tune
from cleave.kvcache.backends.triton_work import ITEM, Kind
from cleave.kvcache.step import StepPlan

try:
    import torch

    from cleave.kvcache.backends.device_tensors import (
        check_chunks,
        check_tensors,
        checked_dtype,
        checked_sequences,
        no_room,
    )
    from cleave.kvcache.backends.triton_buffer import Sections, StepBuffer, aligned
    from cleave.kvcache.backends.triton_chunks import Chunks, TritonChunks
    from cleave.kvcache.backends.triton_device import resources, usable
    from cleave.kvcache.backends.triton_kernel import layout_of
    from cleave.kvcache.backends.triton_layer import Layer, full_tables, make_layer
except ImportError as error:
    raise MissingPackage(error.name or "triton", "gpu", "the triton attention backend") from None

Tensor = torch.Tensor
_DTYPES = ("float32", "float16", "bfloat16")


@dataclass(frozen=True, slots=True)
class _Step:
    """The planned step."""

    rows: int
    is_decode: bool
    decoding: tuple[int, ...]
    """Of each kind, the programs of the decode kernel, where the step is not padded."""
    attention: Chunks
    """Of its chunks."""
    chunks: Any
    """What `Chunks.plan` gave; None in a decode step."""


class TritonBackend:
    """Attention on torch tensors of one NVIDIA GPU, float32 sums, the KV cache in `dtype` after RoPE.

    `run` only launches kernels on the current stream: it can be captured in a CUDA graph. A captured
    decode step serves every later step that has an equal `graph_key` and at most its rows: q, k, v and
    out may have more rows than the step, and out is zero there. `deterministic`: the bits of a row do
    not depend on what else is in the batch.
    """

    takes_padding = True
    _name = "triton"

    def __init__(
        self,
        shape: CacheShape,
        *,
        device: str = "cuda",
        dtype: str = "float16",
        deterministic: bool = False,
        max_sequences: int | None = None,
    ) -> None:
        """Allocate everything; `max_sequences` bounds the chunks of a step (None: 512, or max_tokens).

        Raises AttentionError where there is no GPU of compute capability 8.0 or higher, for a dtype that
        is not supported, or where the cache does not fit.
        """
        self._dtype = checked_dtype(dtype, _DTYPES)
        self._max_sequences = checked_sequences(max_sequences, shape)
        self._device = usable(device, self._name)
        self._layers: list[Layer] = []
        self._shape = shape
        self._deterministic = deterministic
        self._kinds, kind_of_layer, tunings = self._divide()
        try:
            self._allocate(kind_of_layer, tunings)
        except torch.OutOfMemoryError:
            raise no_room(shape, dtype) from None
        self._step: _Step | None = None

    @property
    def graph_key(self) -> Hashable | None:
        """What, beside the rows of q, fixes the launches of the planned step; None: do not capture it."""
        if self._step is None or not self._step.is_decode:
            return None
        return tuple(kind.extra for kind in self._kinds)

    def plan(self, step: StepPlan) -> None:
        """Divide the step among programs and send their numbers to the GPU, on the current stream.

        Raises AttentionError for more chunks than max_sequences.
        """
        self._plan(step, self._attention_of(step))

    def _plan(self, step: StepPlan, attention: Chunks) -> None:
        """As `plan`, with what attends to the chunks."""
        self._step = None
        check_chunks(step, self._max_sequences)
        taken = attention.taken(np.diff(step.offsets))
        is_decode = not taken.any()
        numbers = self._buffer.begin()
        width = step.page_table.shape[1]
        tables = np.arange(step.chunks) * width
        used = self._pages_at + step.chunks * width
        numbers[self._pages_at : used].reshape(step.chunks, width)[:] = step.page_table
        numbers[0] = step.tokens

        decoded = slice(None) if is_decode else np.flatnonzero(~taken)
        rows, starts, offsets = step.offsets[:-1][decoded], step.starts[decoded], tables[decoded]
        lists = [kind.decode_items(rows, starts, offsets) for kind in self._kinds]
        for number, (items, at) in enumerate(zip(lists, self._items_at, strict=True)):
            numbers[1 + number] = len(items)
            numbers[at : at + items.size] = items.reshape(-1)
        send = Sections(numbers, self._buffer.device, used)
        chunks = None if is_decode else attention.plan(step, taken, tables, send)
        self._buffer.send(send.used)
        decoding = (
            min(len(items), len(rows) + kind.extra) for kind, items in zip(self._kinds, lists, strict=True)
        )
        self._step = _Step(step.tokens, is_decode, tuple(decoding), attention, chunks)

    def run(self, layer: int, q: Any, k: Any, v: Any, out: Any) -> None:
        """Launch one layer of the planned step on the current stream.

        q, k and v may be columns of one tensor: their rows need not touch. Raises AttentionError, with
        nothing launched, where one of the tensors does not fit.
        """
        step = self._step
        if step is None:
            raise AttentionError("no step is planned; call plan(step) before run(layer, ...)")
        own = self._layers[layer]
        check_tensors(own.spec, step.rows, self._dtype, self._device, q, k, v, out)
        spare = len(q) if step.is_decode else 0
        if step.decoding[own.kind]:
            extra = self._kinds[own.kind].extra
            programs = spare + extra if step.is_decode else step.decoding[own.kind]
            strides = q.stride(0), k.stride(0), v.stride(0)
            own.decode.launch(
                (own.spec.kv_heads, programs, 1), layout_of(q, k, v, out), q, k, v, out, *strides, spare,
                own.keys, own.values, own.cos, own.sin, self._items[own.kind], self._room[own.kind],
                self._tokens, self._item_counts[own.kind], self._pages, self._sums, self._arrived,
            )  # fmt: skip
        if step.chunks is not None:
            step.attention.run(step.chunks, layer, q, k, v, out)
            if len(out) > step.rows:
                out[step.rows :].zero_()

    def close(self) -> None:
        """Give the pages back."""
        self._layers, self._step = [], None
        vars(self).pop("_chunks", None)  # they hold the layers too

    def _divide(self) -> tuple[list[Kind], list[int], list[Tuning]]:
        """The kinds, the kind of each layer, and its block sizes."""
        processors, shared_memory = resources(self._device)
        # The interpreter takes the blocks that a GPU has: fewer and larger ones suit it too.
        item_bytes = self._dtype.itemsize if self._device.type == "cuda" else 2
        kinds: dict[Kind, int] = {}
        kind_of_layer, tunings = [], []
        for spec in self._shape.specs:
            tuning = tune(spec, item_bytes, processors, shared_memory)
            extra = max(1, tuning.programs // spec.kv_heads)
            tile_tokens = tuning.prefill.rows // (spec.heads // spec.kv_heads)
            kind = Kind(spec.window, tile_tokens, tuning.decode.keys, extra, self._deterministic)
            kind_of_layer.append(kinds.setdefault(kind, len(kinds)))
            tunings.append(tuning)
        return list(kinds), kind_of_layer, tunings

    def _allocate(self, kind_of_layer: list[int], tunings: list[Tuning]) -> None:
        shape, device = self._shape, self._device
        sequences = self._max_sequences
        end = aligned(1 + len(self._kinds))
        self._items_at = []
        self._room = [kind.most_items(sequences) for kind in self._kinds]
        for room in self._room:
            self._items_at.append(end)
            end = aligned(end + room * ITEM)
        self._pages_at = end
        end += sequences * -(-shape.max_position // shape.page_size)
        end = aligned(end) + self._room_of_chunks()
        self._buffer = StepBuffer(end, device)
        numbers = self._buffer.device
        self._tokens = numbers
        self._item_counts = [numbers[1 + number :] for number in range(len(self._kinds))]
        self._items = [numbers[at:] for at in self._items_at]
        self._pages = numbers[self._pages_at :]

        records = {kind: kind.most_records(sequences) for kind in self._kinds}
        sums = arrived = 1
        for spec, number, tuning in zip(shape.specs, kind_of_layer, tunings, strict=True):
            count = records[self._kinds[number]]
            sums = max(sums, count * spec.heads * (tuning.dims + 4))
            arrived = max(arrived, count * spec.kv_heads)
        self._sums = torch.empty(sums, dtype=torch.float32, device=device)
        self._arrived = torch.zeros(arrived, dtype=torch.int32, device=device)

        tables = {spec.rope: full_tables(spec.rope, shape.max_position, device) for spec in shape.specs}
        self._layers = [
            make_layer(
                shape,
                spec,
                number,
                tuning,
                self._dtype,
                *tables[spec.rope],
                deterministic=self._deterministic,
            )
            for spec, number, tuning in zip(shape.specs, kind_of_layer, tunings, strict=True)
        ]
        self._chunks = TritonChunks(self._kinds, self._layers, self._pages)

    def _room_of_chunks(self) -> int:
        """Numbers of the chunks of a step, at most."""
        return TritonChunks.room(self._kinds, self._shape.max_tokens, self._max_sequences)

    def _attention_of(self, step: StepPlan) -> Chunks:
        """What attends to the chunks of a step."""
        return self._chunks
