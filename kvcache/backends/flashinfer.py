"""The attention backend over FlashInfer's kernels: RoPE and append are the backend `triton`'s."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from cleave.errors import AttentionError, MissingPackage
from cleave.kvcache.backend import CacheShape
from cleave.kvcache.backends.triton_tuning import tune
from cleave.kvcache.spec import AttentionSpec
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
    from cleave.kvcache.backends.triton_device import resources, usable
    from cleave.kvcache.backends.triton_kernel import layout_of
    from cleave.kvcache.backends.triton_layer import Layer, full_tables, make_layer
except ImportError as error:
    raise MissingPackage(error.name or "triton", "gpu", "the flashinfer attention backend") from None
try:
    from cleave.kvcache.backends.flashinfer_plans import Plans, StepPages
except ImportError:
    raise MissingPackage("flashinfer-python", "flashinfer", "the flashinfer attention backend") from None

Tensor = torch.Tensor
Int64 = npt.NDArray[np.int64]
_DTYPES = ("float16", "bfloat16")
_HEAD_DIMS = (64, 128, 256)
_WORKSPACE = 256 << 20
"""Bytes in which programs that share a row leave their sums."""


@dataclass(frozen=True, slots=True)
class _Step:
    """The planned step."""

    rows: int
    padded: int | None
    """Requests that a decode step is padded to; None for other steps."""
    positions: Tensor
    slots: Tensor
    """[rows], or [max_sequences] in a decode step, -1 past the rows of the step."""


class FlashInferBackend:
    """Attention on torch tensors of one NVIDIA GPU, the KV cache in `dtype` after RoPE.

    Decode steps are padded to a power of two of requests, for which FlashInfer has a plan of its own; a
    captured one serves every later step that has an equal `graph_key` and at most its rows. Rows of out
    past those of the step hold nothing of use.
    """

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

        Raises AttentionError where there is no GPU of compute capability 8.0 or higher, for a dtype or a
        head_dim that FlashInfer lacks, for `deterministic`, or where the cache does not fit.
        """
        self._dtype = checked_dtype(dtype, _DTYPES)
        if deterministic:
            raise AttentionError(
                "the flashinfer attention backend cannot be deterministic: take attention 'triton'"
            )
        for spec in shape.specs:
            if spec.head_dim not in _HEAD_DIMS:
                raise AttentionError(
                    f"head_dim {spec.head_dim} is not among those of FlashInfer, "
                    f"{', '.join(map(str, _HEAD_DIMS))}: take attention 'triton'"
                )
        self._max_sequences = checked_sequences(max_sequences, shape)
        self._device = usable(device, "flashinfer")
        self._shape = shape
        self._layers: list[Layer] = []
        self._plans: list[Plans] = []
        try:
            self._allocate()
        except torch.OutOfMemoryError:
            raise no_room(shape, dtype) from None
        self._step: _Step | None = None

    @property
    def graph_key(self) -> Hashable | None:
        """What, beside the rows of q, fixes the launches of the planned step; None: do not capture it."""
        return None if self._step is None else self._step.padded

    def plan(self, step: StepPlan) -> None:
        """Let FlashInfer divide the step among programs, and send the numbers of its rows to the GPU.

        Raises AttentionError for more chunks than max_sequences.
        """
        self._step = None
        check_chunks(step, self._max_sequences)
        counts = np.diff(step.offsets)
        is_decode = bool((counts == 1).all())
        padded = self._padded(step.chunks) if is_decode else None
        rows = self._max_sequences if is_decode else step.tokens
        # FlashInfer's plan has one pinned buffer: its last copy must have been made. That of the step
        # before is, once the step before that has ended.
        if self._copied is not None:
            self._copied.synchronize()
        numbers = self._buffer.begin()
        send = Sections(numbers, self._buffer.device, 0)
        positions = send.add(_filled(step.positions, rows, 0))
        slots = send.add(_filled(step.slots, rows, -1))
        lengths = step.starts + counts
        held = -(-lengths // self._shape.page_size)
        listed = step.page_table[np.arange(step.page_table.shape[1]) < held[:, None]]
        spare = (padded or step.chunks) - step.chunks
        # Requests that fill a decode step up read the first slot of page 0, and what they give is not used.
        listed = np.concatenate((listed, np.zeros(spare, np.int32)))
        held = np.concatenate((held, np.ones(spare, np.int64)))
        filled = np.concatenate(((lengths - 1) % self._shape.page_size + 1, np.ones(spare, np.int64)))
        pages = StepPages(
            torch.from_numpy(np.concatenate(([0], np.cumsum(held))).astype(np.int32)),
            send.add(listed),
            torch.from_numpy(filled.astype(np.int32)),
        )
        self._buffer.send(send.used)
        rows_of = None if is_decode else torch.from_numpy(step.offsets.astype(np.int32))
        for plans in self._plans:
            plans.plan(pages, rows_of, padded)
        if self._copied is not None:
            self._copied.record()
        self._step = _Step(step.tokens, padded, positions, slots)

    def run(self, layer: int, q: Any, k: Any, v: Any, out: Any) -> None:
        """Launch one layer of the planned step on the current stream.

        Raises AttentionError, with nothing launched, where one of the tensors does not fit.
        """
        step = self._step
        if step is None:
            raise AttentionError("no step is planned; call plan(step) before run(layer, ...)")
        own = self._layers[layer]
        spec, count = own.spec, len(q)
        check_tensors(spec, step.rows, self._dtype, self._device, q, k, v, out)
        if step.padded and count > self._max_sequences:
            raise AttentionError(
                f"the decode step has {count} rows; max_sequences allows {self._max_sequences}"
            )
        rows = count if step.padded else step.rows
        needed = step.padded or step.rows
        rotated = self._rotated[: max(rows, needed) * spec.q_size].view(-1, spec.q_size)
        blocks = -(-rows // own.tuning.append.rows)
        own.append.launch(
            (blocks, own.tuning.shares, 1), layout_of(q, k, v, rotated), q, k, v, rotated,
            q.stride(0), k.stride(0), v.stride(0), rows, own.keys, own.values, own.cos, own.sin,
            step.positions, step.slots,
        )  # fmt: skip
        if spec.rope is None:
            rotated[:rows].copy_(q[:rows])
        given = out if count >= needed else self._padded_out[: needed * spec.q_size].view(-1, spec.q_size)
        heads = (needed, spec.heads, spec.head_dim)
        self._plans[own.kind].wrapper(step.padded).run(
            rotated[:needed].view(heads), (own.keys, own.values), out=given[:needed].view(heads)
        )
        if given is not out:
            out.copy_(given[:count])
        elif count > needed:
            out[needed:].zero_()

    def close(self) -> None:
        """Give the pages back."""
        self._layers, self._plans, self._step = [], [], None

    def _padded(self, requests: int) -> int:
        return min(1 << (requests - 1).bit_length(), self._max_sequences)

    def _allocate(self) -> None:
        shape, device, sequences = self._shape, self._device, self._max_sequences
        # Sequences may share pages, which are then listed more than once.
        listed = sequences * -(-shape.max_position // shape.page_size) + sequences
        self._buffer = StepBuffer(aligned(2 * aligned(shape.max_tokens)) + listed, device)
        widest = max(spec.q_size for spec in shape.specs)
        self._rotated = torch.zeros(shape.max_tokens * widest, dtype=self._dtype, device=device)
        self._padded_out = torch.zeros(sequences * widest, dtype=self._dtype, device=device)
        workspace = torch.zeros(_WORKSPACE, dtype=torch.uint8, device=device)
        self._copied = torch.cuda.Event() if device.type == "cuda" else None  # type: ignore[no-untyped-call]
        processors, shared_memory = resources(device)
        tables = {spec.rope: full_tables(spec.rope, shape.max_position, device) for spec in shape.specs}
        kinds: dict[AttentionSpec, int] = {}
        for spec in shape.specs:
            kind = kinds.setdefault(replace(spec, rope=None), len(kinds))
            tuning = tune(spec, self._dtype.itemsize, processors, shared_memory)
            layer = make_layer(
                shape, spec, kind, tuning, self._dtype, *tables[spec.rope], deterministic=False
            )
            self._layers.append(layer)
        self._plans = [Plans(spec, shape.page_size, self._dtype, workspace, listed) for spec in kinds]


def _filled(values: Int64, size: int, rest: int) -> Int64:
    """`values`, and `rest` behind them up to `size`."""
    return np.concatenate((values, np.full(size - len(values), rest, values.dtype)))
