"""Which kernels a step launches, and the memory that they share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import triton

from cleave.runtime.sampling.device import fields
from cleave.runtime.sampling.device.cut_kernels import (
    BOUNDS,
    aim_kernel,
    bounds_kernel,
    cut_kernel,
    gather_kernel,
)
from cleave.runtime.sampling.device.draw_kernels import draw_kernel, scan_kernel, weigh_kernel
from cleave.runtime.sampling.device.edit_kernels import bias_kernel, edit_kernel
from cleave.runtime.sampling.device.logprob_kernels import measure_kernel, rank_kernel
from cleave.runtime.sampling.device.parameters import Parameters, kept_by_top_k
from cleave.runtime.sampling.device.results import Results
from cleave.runtime.sampling.device.slots import BIASES, Slots
from cleave.runtime.sampling.state import SamplingState
from cleave.runtime.triton_launch import launch

Tensor = torch.Tensor
_LIST = 512
"""Numbers of a list that a program looks at together."""


class Buffers:
    """What the kernels of one step leave to the next one of them."""

    def __init__(self, rows: int, vocab: int, device: torch.device) -> None:
        """Takes a little over 8 bytes for each logit of the largest step."""
        self.vocab = vocab
        self.blocks = triton.cdiv(vocab, fields.BLOCK.value)
        self.programs = triton.cdiv(self.blocks, fields.BLOCKS.value)
        """Programs that a row is divided among."""

        def floats(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=torch.float32, device=device)

        self.edited, self.listed = floats(rows, vocab), floats(rows, vocab)
        self.raw_peaks, self.peaks = floats(rows, self.blocks), floats(rows, self.blocks)
        self.masses = floats(rows, self.blocks)
        self.coarse = floats(rows, self.programs, BOUNDS.value)
        self.fine = floats(rows, self.programs, BOUNDS.value)
        self.cuts = floats(rows)
        self.ranks = torch.zeros(rows, self.programs, dtype=torch.int32, device=device)
        self.found = torch.zeros(rows, dtype=torch.int32, device=device)


@dataclass(frozen=True, slots=True)
class Launches:
    """The kernels that some row of a step needs, besides those that all need."""

    edits: bool
    has_biases: bool
    draws: bool
    """Whether some row takes another token than the likeliest."""
    filters: bool
    top_k: bool
    top_p_alone: bool
    """Whether some row has top-p without top-k."""
    logprobs: bool

    @classmethod
    def of(cls, states: Sequence[SamplingState | None], vocab: int) -> Launches:
        """What rows of these states need."""
        known = [state for state in states if state is not None]
        drawn = [state.settings for state in known if state.settings[0] != 0.0]
        filters = [(kept_by_top_k(top_k, vocab), (top_p or 1.0) < 1.0) for _, top_k, top_p, _ in drawn]
        return cls(
            edits=any(state.always_edits or state.min_tokens > 0 for state in known),
            has_biases=any(len(state.biased) > 0 for state in known),
            draws=bool(drawn),
            filters=any(top_k or has_top_p for top_k, has_top_p in filters),
            top_k=any(top_k for top_k, _ in filters),
            top_p_alone=any(has_top_p and not top_k for top_k, has_top_p in filters),
            logprobs=any(state.logprobs is not None for state in known),
        )

    def run(
        self,
        logits: Tensor,
        rows: int,
        buffers: Buffers,
        slots: Slots,
        parameters: Parameters,
        results: Results,
    ) -> None:
        """Launch them for the first `rows` of the logits; on the device "meta", compile them."""
        if rows == 0:
            return
        b, vocab, blocks = buffers, buffers.vocab, buffers.blocks
        size = triton.next_power_of_2(blocks)
        programs = triton.next_power_of_2(b.programs)
        ints, reals = parameters.ints, parameters.reals
        source = (logits, logits.stride(0), b.edited)
        all_blocks = (rows, b.programs)
        # Without contraction to fused operations: every product is rounded, as on the CPU.
        exact = {"enable_fp_fusion": False}
        if self.edits:
            launch(
                edit_kernel, all_blocks,
                *source, b.raw_peaks, ints, reals, slots.allowed, slots.before_stop, slots.counts,
                vocab, slots.allowed.shape[1], blocks, **exact,
            )  # fmt: skip
        if self.has_biases:
            launch(
                bias_kernel, (rows,),
                *source, ints, reals, slots.counts, slots.biased, slots.biases, slots.bias_counts,
                vocab, BIASES, SIZE=256, **exact,
            )  # fmt: skip
        launch(scan_kernel, all_blocks, *source, b.peaks, b.found, ints, vocab, blocks)
        if self.top_p_alone:
            for is_fine in (False, True):
                launch(
                    bounds_kernel, all_blocks,
                    *source, b.peaks, b.coarse, b.fine, ints, reals, vocab, blocks, b.programs,
                    IS_FINE=is_fine, SIZE=size, PROGRAMS=programs, **exact,
                )  # fmt: skip
        if self.top_k:
            launch(aim_kernel, (rows,), b.peaks, b.cuts, ints, reals, blocks, SIZE=size)
        if self.filters:
            launch(
                gather_kernel, all_blocks,
                *source, b.peaks, b.coarse, b.fine, b.cuts, b.found, b.listed, ints, reals, vocab, blocks,
                b.programs, SIZE=size, PROGRAMS=programs, num_warps=8, **exact,
            )  # fmt: skip
            launch(
                cut_kernel, (rows,),
                b.peaks, b.coarse, b.fine, b.found, b.listed, b.cuts, ints, reals, vocab, blocks, b.programs,
                SIZE=size, PROGRAMS=programs, LIST=_LIST, num_warps=8, **exact,
            )  # fmt: skip
        if self.draws:
            launch(
                weigh_kernel, all_blocks,
                *source, b.peaks, b.masses, b.cuts, ints, reals, vocab, blocks, SIZE=size, **exact,
            )  # fmt: skip
        launch(
            draw_kernel, (rows,),
            *source, b.raw_peaks, b.peaks, b.masses, b.cuts, slots.counts, results.tokens, results.status,
            ints, reals, vocab, blocks, SIZE=size, **exact,
        )  # fmt: skip
        if self.logprobs:
            raw = (logits, logits.stride(0), b.raw_peaks, b.peaks, b.masses, b.ranks, results.tokens)
            launch(measure_kernel, all_blocks, *raw, ints, vocab, blocks, b.programs, SIZE=size, **exact)
            launch(
                rank_kernel, (rows,),
                *raw, results.answers, ints, vocab, blocks, b.programs,
                SIZE=size, PROGRAMS=programs, **exact,
            )  # fmt: skip
