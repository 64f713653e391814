"""What the device keeps of sequences that edit their logits: masks, biases, and how often each token came."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from cleave.runtime.sampling.device.fields import SEEN
from cleave.runtime.sampling.device.row import SampledRow
from cleave.runtime.sampling.history import TokenCounts
from cleave.runtime.sampling.state import SamplingState

Tensor = torch.Tensor
BIASES = 1024
"""Biased tokens that a sequence may have on the device."""
_SEEN = int(SEEN.value)
_ALL = 0xFFFFFFFF


def masks_move(state: SamplingState) -> bool:
    """Whether what may come next depends on the tokens so far; else it is sent once."""
    return state.constraint is not None or (state.bad_words is not None and bool(state.bad_words.longer))


class Slots:
    """One slot for each sequence that needs one; the sequence that was longest not sampled gives its away.

    A slot's counts grow on the device by each token that is drawn. They hold for one next position; a row
    for any other, as after a step that failed or a preemption, has them made anew from the host's state.
    Masks that depend on the tokens so far are sent for each step.
    """

    def __init__(self, vocab: int, slots: int, device: torch.device) -> None:
        """Takes vocab * 4.25 bytes a slot, and 8 KiB."""
        words = -(-vocab // 32)
        self.counts = torch.zeros(slots, vocab, dtype=torch.int32, device=device)
        """[slots, vocab] SEEN, and how often the answer has the token; 0 for tokens that there were not."""
        self.allowed = torch.zeros(slots, words, dtype=torch.int32, device=device)
        """[slots, ceil(vocab / 32)] bits of the tokens that may come."""
        self.before_stop = torch.zeros_like(self.allowed)
        """The same while there are too few tokens for a stop."""
        self.biased = torch.zeros(slots, BIASES, dtype=torch.int32, device=device)
        self.biases = torch.zeros(slots, BIASES, dtype=torch.float32, device=device)
        self.bias_counts = torch.zeros(slots, dtype=torch.int32, device=device)
        self._vocab, self._device = vocab, device
        self._free = list(range(slots))
        self._places: OrderedDict[int, tuple[int, int]] = OrderedDict()
        """Sequence -> its slot, and the position that the slot's counts are for."""
        self._masks: dict[int, SampledRow] = {}
        """Slot -> the row whose masks are to be sent."""

    def place(self, rows: Sequence[SampledRow]) -> list[int]:
        """The slot of each row, made ready for its position; every state edits its logits.

        Raises RuntimeError where the host's state lacks a token that is needed.
        """
        for row in rows:
            if row.sequence in self._places:
                self._places.move_to_end(row.sequence)
        slots = [self._place(row) for row in rows]
        if self._masks:
            self._send_masks()
        return slots

    def forget(self, sequence: int) -> None:
        """Free a sequence's slot, where it has one."""
        place = self._places.pop(sequence, None)
        if place is not None:
            self._free.append(place[0])

    def _place(self, row: SampledRow) -> int:
        state = row.state
        if state is None:
            raise RuntimeError(f"sequence {row.sequence} edits nothing and needs no slot")
        slot, position = self._places.get(row.sequence, (-1, -1))
        is_new = slot < 0
        if is_new:
            if not self._free:
                self._free.append(self._places.popitem(last=False)[1][0])
            slot = self._free.pop()
            number = len(state.biased)
            self.bias_counts[slot].fill_(number)  # assigning would wait for the device
            if number:
                self.biased[slot, :number] = self._sent(state.biased.astype(np.int32))
                self.biases[slot, :number] = self._sent(state.biases)
        if is_new or masks_move(state):
            self._masks[slot] = row
        if state.counts is not None and (is_new or position != row.position):
            self._count(slot, row, state.counts)
        self._places[row.sequence] = (slot, row.position + 1)
        return slot

    def _send_masks(self) -> None:
        """Put the masks of all rows that have new ones on the device, together."""
        slots = self._sent(np.array(list(self._masks), np.int64))
        masks = self._sent(np.stack([self._masks_of(row) for row in self._masks.values()], 1))
        self._masks.clear()
        self.allowed.index_copy_(0, slots, masks[0])
        self.before_stop.index_copy_(0, slots, masks[1])

    def _masks_of(self, row: SampledRow) -> npt.NDArray[np.int32]:
        """[2, words] what may come at the row's place, and what while there are too few tokens to stop."""
        words = self.allowed.shape[1]
        result = np.full((2, words), _ALL, np.uint32)
        state = row.state
        if state is None:
            return result.view(np.int32)
        if masks_move(state):
            _check_known(row, state)
        if state.allowed is not None:
            result &= state.allowed
        if state.constraint is not None:
            result &= state.constraint.mask()[:words]
        if state.bad_words is not None:
            _clear(result, state.bad_words.banned())
        if not state.is_complete:
            _clear(result[1:], state.stops)
        return result.view(np.int32)

    def _count(self, slot: int, row: SampledRow, known: TokenCounts) -> None:
        _check_known(row, row.state)
        numbers = np.stack([known.tokens[: known.size], known.counts[: known.size] | _SEEN])
        tokens, counts = self._sent(numbers)
        self.counts[slot].zero_().scatter_(0, tokens, counts.int())

    def _sent(self, numbers: npt.NDArray[Any]) -> Tensor:
        """The numbers on the device; the host does not wait for them."""
        host = torch.from_numpy(np.ascontiguousarray(numbers))
        if self._device.type == "cuda":
            host = host.pin_memory()
        return host.to(self._device, non_blocking=True)


def _check_known(row: SampledRow, state: SamplingState | None) -> None:
    """Raises RuntimeError where the host's state lacks a token."""
    if state is not None and state.generated != row.position:
        raise RuntimeError(
            f"sequence {row.sequence} is sampled at position {row.position}, and the host has "
            f"{state.generated} of its tokens"
        )


def _clear(masks: npt.NDArray[np.uint32], tokens: npt.NDArray[np.int64]) -> None:
    """Take the bits of tokens out of masks [n, words]."""
    for mask in masks:
        np.bitwise_and.at(mask, tokens // 32, ~(np.uint32(1) << (tokens % 32).astype(np.uint32)))
