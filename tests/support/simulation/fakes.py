"""An engine and a storage that mix the token history into numbers, and what they should have come to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from cleave.kvcache.backend import CacheShape
from cleave.kvcache.step import StepPlan
from cleave.runtime.engines.inductor.inputs import check_rows
from cleave.runtime.sampling.state import SamplingState
from cleave.runtime.sampling_params import SamplingDefaults, SamplingParams
from simulation.scenario import LATE_LIMIT, LATE_POISON, POISON, STOP, VOCAB, RequestPlan

LAYERS = 2
_MASK = (1 << 64) - 1
_MIX = 0x9E3779B97F4A7C15
_POSITION = 0xD1B54A32D192ED03
_LONGEST = 4096
WEIGHTS = [pow(0xBF58476D1CE4E5B9, position + 1, 1 << 64) | 1 for position in range(_LONGEST)]
_WEIGHTS = np.array(WEIGHTS, np.uint64)


class Fault(Exception):
    """What a fake raises when a fault is due."""


def mix(x: Any) -> Any:
    """A bijection of 64-bit numbers; x is a uint64 array."""
    x = (x ^ (x >> np.uint64(29))) * np.uint64(_MIX)
    return x ^ (x >> np.uint64(32))


def _mix(x: int) -> int:
    x = ((x ^ (x >> 29)) * _MIX) & _MASK
    return x ^ (x >> 32)


def _stored(x: int, layer: int) -> int:
    """What a layer stores of a token: k + v."""
    return (x * (3 + layer) + (x ^ 7)) & _MASK


_STORED_LATE_POISON = _stored(_mix(LATE_POISON + 1), 0)


class Faults:
    """Which fault is due in the present run of the engine; a run begins with the plan of its step."""

    def __init__(self, faults: dict[int, str]) -> None:
        self._faults = faults
        self.runs = -1
        self.masks = 0
        """Asked for in the present run."""

    def begin(self) -> None:
        """The next run."""
        self.runs += 1
        self.masks = 0

    @property
    def due(self) -> str | None:
        """The kind of the fault of this run."""
        return self._faults.get(self.runs)


class FakeBackend:
    """Storage of one number a token and layer; what it gives back depends on all numbers before."""

    def __init__(self, shape: CacheShape, *, faults: Faults) -> None:
        self._shape = shape
        self._faults = faults
        self._step: StepPlan | None = None
        slots = shape.num_pages * shape.page_size
        self._store = np.full((len(shape.specs), slots), 0xBAD, np.uint64)

    def plan(self, step: StepPlan) -> None:
        """See AttentionBackend."""
        self._faults.begin()
        if self._faults.due == "plan":
            raise Fault("plan")
        if self._faults.due == "interrupt_in_plan":
            raise KeyboardInterrupt
        if len(set(step.slots.tolist())) != step.tokens:
            raise AssertionError("two rows of a step are written to one slot")
        self._step = step

    def run(self, layer: int, q: Any, k: Any, v: Any, out: Any) -> None:
        """See AttentionBackend; q, k, v, out are uint64 [tokens, 1]."""
        assert self._step is not None
        self.attend(self._step, self._faults.due, layer, k, v, out)

    def attend(self, step: StepPlan, due: str | None, layer: int, k: Any, v: Any, out: Any) -> None:
        """One layer of a step that meets the fault `due`."""
        size, store = self._shape.page_size, self._store[layer]
        if layer == 1 and due == "attention":
            raise Fault("attention")
        if layer == 1 and due == "half_writes":
            half = step.tokens // 2
            store[step.slots[:half]] = k[:half, 0] ^ np.uint64(0xFFFF)
            raise Fault("half of the writes")
        store[step.slots] = k[:, 0] + v[:, 0]
        places = np.arange(size)
        for chunk in range(step.chunks):
            first, end = int(step.offsets[chunk]), int(step.offsets[chunk + 1])
            length = int(step.starts[chunk]) + end - first
            pages = step.page_table[chunk, : -(-length // size)].astype(np.int64)
            history = store[(pages[:, None] * size + places).ravel()[:length]]
            if layer == 0 and length > LATE_LIMIT and int(history[0]) == _STORED_LATE_POISON:
                raise Fault("late poison")
            sums = np.cumsum(history * _WEIGHTS[:length], dtype=np.uint64)
            positions = step.positions[first:end].astype(np.uint64)
            out[first:end, 0] = mix(sums[length - (end - first) :] + positions * np.uint64(_POSITION))

    def spoil(self, pages: list[int]) -> None:
        """Overwrite pages that nobody may read."""
        size = self._shape.page_size
        for page in pages:
            self._store[:, page * size : (page + 1) * size] = 0xBAD + page

    def close(self) -> None:
        """See AttentionBackend."""


class FakeEngine:
    """Tokens to logits in two layers; the next token is a function of the whole history."""

    kind = "fake"
    notes = ()

    def __init__(self, faults: Faults) -> None:
        self._faults = faults

    def run(self, token_ids: Any, logit_rows: Any, attention: Any) -> Any:
        """See Engine."""
        check_rows(logit_rows, len(token_ids))
        x = mix(token_ids.astype(np.uint64)[:, None] + np.uint64(1))
        for layer in range(LAYERS):
            out = np.zeros_like(x)
            attention.run(layer, x, x * np.uint64(3 + layer), x ^ np.uint64(7), out)
            x = mix(x + out)
            if layer == 0 and self._faults.due == "interrupt":
                raise KeyboardInterrupt
            if layer == 0 and self._faults.due == "engine":
                raise Fault("engine")
        if POISON in token_ids:
            raise Fault("poison")
        logits = np.zeros((len(logit_rows), VOCAB), np.float32)
        tokens = x[logit_rows, 0] % np.uint64(STOP + 1)
        logits[np.arange(len(logit_rows)), tokens.astype(np.int64)] = 1
        if self._faults.due == "not_finite":
            logits[:] = np.nan
        return logits

    def close(self) -> None:
        """See Engine."""


@dataclass(frozen=True)
class Answer:
    """How a request ends when it runs alone and nothing is injected."""

    tokens: tuple[int, ...]
    reason: str


class Oracle:
    """The same arithmetic without pages, steps and batches."""

    def __init__(self) -> None:
        self._sums = [0] * LAYERS
        self._length = 0

    def push(self, token: int) -> int:
        """Take one token; gives back the next one."""
        x = _mix(token + 1)
        for layer in range(LAYERS):
            weighted = _stored(x, layer) * WEIGHTS[self._length]
            self._sums[layer] = (self._sums[layer] + weighted) & _MASK
            x = _mix((x + _mix((self._sums[layer] + self._length * _POSITION) & _MASK)) & _MASK)
        self._length += 1
        return x % (STOP + 1)


def answer_alone(request: RequestPlan) -> Answer:
    """What a request should come to."""
    if POISON in request.prompt:
        return Answer((), "error")
    oracle = Oracle()
    limit = LATE_LIMIT if request.prompt[0] == LATE_POISON else _LONGEST
    if len(request.prompt) > limit:
        return Answer((), "error")
    token = 0
    for known in request.prompt:
        token = oracle.push(known)
    output: list[int] = []
    while True:
        output.append(token)
        if request.stops and token == STOP:
            return Answer(tuple(output), "stop")
        if len(output) == request.max_tokens:
            return Answer(tuple(output), "length")
        if len(request.prompt) + len(output) > limit:
            return Answer(tuple(output), "error")
        token = oracle.push(token)


class Recorder:
    """A grammar that allows everything, and keeps what it accepted."""

    is_complete = False

    def __init__(self, faults: Faults) -> None:
        self.accepted: list[int] = []
        self._faults = faults

    def mask(self) -> Any:
        """See TokenConstraint."""
        self._faults.masks += 1
        if self._faults.due == "second_mask" and self._faults.masks == 2:
            raise Fault("second mask")
        return np.full((VOCAB + 31) // 32, 0xFFFFFFFF, np.uint32)

    def accept(self, token: int) -> None:
        """See TokenConstraint."""
        self.accepted.append(token)


def recorded(name: int, request: RequestPlan, faults: Faults) -> SamplingState | None:
    """How a request is sampled: every third one plainly, every third one with the prompt's logprobs."""
    if name % 3 == 0:
        return None
    params = SamplingParams(logprobs=1, prompt_logprobs=0 if name % 3 == 2 else None)
    constraint = Recorder(faults)
    return SamplingState(params.resolved(SamplingDefaults()), request.prompt, VOCAB, constraint=constraint)
