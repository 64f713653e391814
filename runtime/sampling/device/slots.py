"""What the device keeps of sequences that edit their logits: masks, biases, and how often each token came."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from cleave.runtime.sampling.device.fields import SEEN
from cleave.runtime.sampling.device.row import SampledRow
from cleave.runtime.sampling.state import SamplingState

Tensor = torch.Tensor
BIASES = 1024
"""Biased tokens that a sequence may have on the device."""
_SEEN = int(SEEN.value)


class Slots:
    """One slot for each sequence that needs one; the sequence that was longest not sampled gives its away.

    A slot's counts grow on the device by each token that is drawn. They hold for one next position; a row
    for any other, as after a step that failed or a preemption, has them made anew from the host's state.
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

    @staticmethod
    def fits(state: SamplingState) -> bool:
        """Whether a slot can hold all that the state needs."""
        return len(state.biased) <= BIASES and not (state.bad_words and state.bad_words.longer)

    def place(self, rows: Iterable[SampledRow]) -> list[int]:
        """The slot of each row, made ready for its position; every state edits its logits.

        Raises RuntimeError where the counts are gone and the host's state lacks a token.
        """
        rows = list(rows)
        for row in rows:
            if row.sequence in self._places:
                self._places.move_to_end(row.sequence)
        return [self._place(row) for row in rows]

    def forget(self, sequence: int) -> None:
        """Free a sequence's slot, where it has one."""
        place = self._places.pop(sequence, None)
        if place is not None:
            self._free.append(place[0])

    def _place(self, row: SampledRow) -> int:
        place = self._places.get(row.sequence)
        if place is None:
            if not self._free:
                self._free.append(self._places.popitem(last=False)[1][0])
            slot = self._free.pop()
            self._fill(slot, row)
        else:
            slot, position = place
            if position != row.position:
                self._count(slot, row)
        self._places[row.sequence] = (slot, row.position + 1)
        return slot

    def _fill(self, slot: int, row: SampledRow) -> None:
        state = row.state
        if state is None:
            raise RuntimeError(f"sequence {row.sequence} edits nothing and needs no slot")
        words = self.allowed.shape[1]
        allowed = np.full(words, -1, np.int32) if state.allowed is None else state.allowed.view(np.int32)
        flags = np.unpackbits(allowed.view(np.uint8), bitorder="little")
        if state.bad_words is not None:
            flags[state.bad_words.single] = 0
        masks = [np.packbits(flags, bitorder="little").view(np.int32)]
        flags[state.stops] = 0
        masks.append(np.packbits(flags, bitorder="little").view(np.int32))
        self.allowed[slot], self.before_stop[slot] = self._sent(np.stack(masks))
        number = len(state.biased)
        self.bias_counts[slot] = number
        if number:
            self.biased[slot, :number] = self._sent(state.biased.astype(np.int32))
            self.biases[slot, :number] = self._sent(state.biases)
        self._count(slot, row)

    def _count(self, slot: int, row: SampledRow) -> None:
        if row.state is None or row.state.counts is None:
            return
        if row.state.generated != row.position:
            raise RuntimeError(
                f"sequence {row.sequence} is sampled at position {row.position}, and the host has "
                f"{row.state.generated} of its tokens"
            )
        known = row.state.counts
        numbers = np.stack([known.tokens[: known.size], known.counts[: known.size] | _SEEN])
        tokens, counts = self._sent(numbers)
        self.counts[slot].zero_().scatter_(0, tokens, counts.int())

    def _sent(self, numbers: npt.NDArray[Any]) -> Tensor:
        """The numbers on the device; the host does not wait for them."""
        host = torch.from_numpy(np.ascontiguousarray(numbers))
        if self._device.type == "cuda":
            host = host.pin_memory()
        return host.to(self._device, non_blocking=True)
