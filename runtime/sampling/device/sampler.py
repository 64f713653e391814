"""The device sampler: the next token of every row, chosen where the logits are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from cleave.runtime.engines.release import release
from cleave.runtime.sampling.device.launch import Buffers, Launches
from cleave.runtime.sampling.device.parameters import Parameters
from cleave.runtime.sampling.device.pending import Pending
from cleave.runtime.sampling.device.results import IN_FLIGHT, Results
from cleave.runtime.sampling.device.row import SampledRow
from cleave.runtime.sampling.device.slots import BIASES, Slots, masks_move
from cleave.runtime.sampling.state import SamplingState
from cleave.runtime.sampling_params import SamplingDefaults, SamplingParams
from cleave.runtime.triton_launch import compiled_side_by_side

Tensor = torch.Tensor


class DeviceSampler:
    """Chooses tokens as `cleave.runtime.sampling.sampler.Sampler` does, on the device and without waiting.

    What it needs to know of a sequence's tokens lies on the device, and grows there by each token that is
    sampled. It is made anew from the host's `SamplingState` where a row's position does not follow that of
    the sequence's last row: then the host has all tokens before it. So a token that is thrown away does no
    harm.
    """

    def __init__(self, vocab: int, device: torch.device | str, max_sequences: int) -> None:
        """For logits of `vocab` columns and steps of up to `max_sequences` rows.

        Takes about 12.4 bytes of the device for each logit of such a step.
        """
        device = torch.device(device)
        self._buffers = Buffers(max_sequences, vocab, device)
        self._slots = Slots(vocab, max_sequences, device)
        self._parameters = Parameters(max_sequences, vocab, device)
        self._results = [Results(max_sequences, device) for _ in range(IN_FLIGHT)]
        self._next = 0
        self._plan = _Plan([], [], Launches.of([], vocab))

    def takes(self, state: SamplingState | None, *, in_lockstep: bool = False) -> bool:
        """Whether rows of such a request can be sampled here.

        Structured output and bad words of several tokens need the host between two steps: they are taken
        `in_lockstep` alone, where the host has every token before the next step is sampled.
        """
        if state is None:
            return True
        return len(state.biased) <= BIASES and (in_lockstep or not masks_move(state))

    def sample(self, logits: Tensor, rows: Sequence[SampledRow]) -> Pending:
        """A token for each of the first len(rows) of logits [at least rows, vocab] float32.

        Only launches kernels on the current stream; the logits may be overwritten by what is launched
        after it. Every state must be one that the sampler `takes`. Raises RuntimeError where the host's
        state lacks a token that is needed.
        """
        plan = self._planned(rows)
        results = self._results[self._next]
        self._next = (self._next + 1) % len(self._results)
        plan.launches.run(logits, len(rows), self._buffers, self._slots, self._parameters, results)
        results.send(len(rows), logprobs=plan.launches.logprobs)
        return Pending(rows, results, self._buffers.vocab)

    def warm_up(self) -> None:
        """Compile every kernel, side by side, and run each once, so that no request waits for that."""
        vocab, device = self._buffers.vocab, self._buffers.edited.device
        if device.type == "cuda":
            with compiled_side_by_side():
                launch_all(vocab, torch.device("meta"))
        logits = torch.zeros(1, vocab, device=device)
        for number, params in enumerate(_WARM_UP, 1):
            state = SamplingState(params.resolved(SamplingDefaults()), (0,), vocab)
            self.sample(logits, [SampledRow(-number, state, 0)]).wait()
            self.forget(-number)

    def forget(self, sequence: int) -> None:
        """Free the sequence's slot at once; else it would be when others need one.

        It has ended, or a token that is counted there was lost.
        """
        self._slots.forget(sequence)

    def close(self) -> None:
        """Give the memory back; the sampler is not used afterwards."""
        release(self, "_buffers", "_slots", "_parameters", "_results")

    def _planned(self, rows: Sequence[SampledRow]) -> _Plan:
        """What to launch, once the device has the rows' numbers; most steps follow from the one before."""
        edited = [index for index, row in enumerate(rows) if row.state is not None and _edits(row.state)]
        slots = self._slots.place([rows[index] for index in edited])
        places = [(row.sequence, row.position) for row in rows]
        plan = self._plan
        if places != plan.places or slots != plan.slots:
            plan = _Plan(places, slots, Launches.of([row.state for row in rows], self._buffers.vocab))
            of_rows = [0] * len(rows)
            for index, slot in zip(edited, slots, strict=True):
                of_rows[index] = slot
            self._parameters.send(rows, of_rows)
        # The draw adds one to every position on the device.
        plan.places = [(sequence, position + 1) for sequence, position in places]
        self._plan = plan
        return plan


_WARM_UP = (
    SamplingParams(temperature=1.0, top_k=1, top_p=0.5, logprobs=1),
    SamplingParams(temperature=1.0, top_p=0.5, logit_bias={0: 1.0}, repetition_penalty=2.0),
)
"""Requests that need every kernel between them."""


def launch_all(vocab: int, device: torch.device) -> None:
    """Every kernel once, for one row."""
    logits = torch.zeros(1, vocab, device=device)
    states = [SamplingState(params.resolved(SamplingDefaults()), (0,), vocab) for params in _WARM_UP]
    shared = Buffers(1, vocab, device), Slots(vocab, 1, device), Parameters(1, vocab, device)
    Launches.of(states, vocab).run(logits, 1, *shared, Results(1, device))


@dataclass(slots=True)
class _Plan:
    """What the device has the numbers of, and what is launched for it."""

    places: list[tuple[int, int]]
    """Sequence and position of each row."""
    slots: list[int]
    launches: Launches


def _edits(state: SamplingState) -> bool:
    return state.always_edits or state.min_tokens > 0
