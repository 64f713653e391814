"""A fake device: what is launched is carried out later, in order, when somebody waits for it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np

from cleave.kvcache.backend import CacheShape
from cleave.kvcache.step import StepPlan
from cleave.runtime.engines.engine import DeviceOutput
from cleave.runtime.engines.inductor.inputs import check_rows
from cleave.runtime.logit_rows import LogitRows
from cleave.runtime.sampling.logprobs import TokenLogprobs
from cleave.runtime.sampling.sampler import Sampled
from cleave.runtime.sampling.state import SamplingState
from simulation.fakes import LAYERS, FakeBackend, FakeEngine, Fault, Faults, mix
from simulation.scenario import POISON, STOP


class RuleBroken(AssertionError):
    """The host did what no device allows."""


class Stream:
    """Work in the order of its launch, as late as possible: nothing is done before it is waited for."""

    def __init__(self) -> None:
        self._work: deque[Callable[[], None]] = deque()
        self._launched = 0

    def launch(self, work: Callable[[], None]) -> int:
        """Launch some work; gives back the time at which it will be done."""
        self._work.append(work)
        self._launched += 1
        return self._launched

    def wait(self, time: int | None = None) -> None:
        """Wait until then, or for everything."""
        until = self._launched if time is None else time
        while self._launched - len(self._work) < until:
            self._work.popleft()()


class DeviceArray:
    """Numbers on the device; the host must not look at them before they are there."""

    def __init__(self) -> None:
        self._numbers: Any = None

    def __len__(self) -> int:
        raise RuleBroken("the host asks how many tokens there are")

    def write(self, numbers: Any) -> None:
        """In the course of the stream."""
        self._numbers = numbers

    def read(self) -> Any:
        """In the course of the stream, or after the host has waited for it."""
        if self._numbers is None:
            raise RuleBroken("numbers are read that are not there yet")
        return self._numbers


class DeviceStep:
    """A step under way: where one part of it fails, the others are left out."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self.error: Exception | None = None

    def launch(self, work: Callable[[], None]) -> int:
        """Launch a part of it."""
        return self._stream.launch(lambda: self._run(work))

    def _run(self, work: Callable[[], None]) -> None:
        if self.error is None:
            try:
                work()
            except Fault as error:
                self.error = error


class DeviceBackend(FakeBackend):
    """A FakeBackend whose storage is on the device. Every step has a copy of its plan there."""

    def __init__(self, shape: CacheShape, *, faults: Faults, stream: Stream) -> None:
        super().__init__(shape, faults=faults)
        self._stream = stream

    def run(self, layer: int, q: Any, k: Any, v: Any, out: Any) -> None:
        """See AttentionBackend; launched where `q` is the step under way, else at once."""
        if not isinstance(q, DeviceStep):
            super().run(layer, q, k, v, out)
            return
        step, due = self._step, self._faults.due
        assert step is not None
        q.launch(lambda: self.attend(step, due, layer, k.read(), v.read(), out.read()))

    def overflow(self, step: StepPlan, rows: Any) -> None:
        """Leave in the cache what rows leave there whose numbers were too large."""
        self._store[0, step.slots[rows]] ^= np.uint64(0xFF)

    def spoil(self, pages: list[int]) -> None:
        """Overwrite pages that nothing may read which is launched from now on."""
        self._stream.launch(lambda: FakeBackend.spoil(self, pages))


class DeviceEngine(FakeEngine):
    """A FakeEngine that can be launched; see `cleave.runtime.engines.engine.DeviceEngine`."""

    def __init__(self, faults: Faults, stream: Stream) -> None:
        super().__init__(faults)
        self._stream = stream

    def run(self, token_ids: Any, logit_rows: Any, attention: Any) -> Any:
        """See Engine."""
        self._stream.wait()
        return super().run(token_ids, logit_rows, attention)

    def launch(self, token_ids: Any, logit_rows: Any, attention: Any, sampled: Any = None) -> DeviceOutput:
        """See DeviceEngine; `logits` is the step, and `likeliest` and `best` its tokens."""
        check_rows(logit_rows, len(token_ids))
        due = self._faults.due
        if due == "interrupt" and self._faults.runs % 2:
            raise KeyboardInterrupt
        if POISON in token_ids:
            raise Fault("poison")
        step, x, k, v, out = DeviceStep(self._stream), *(DeviceArray() for _ in range(4))
        tokens = DeviceArray()
        plan, backend = attention._backend._step, attention._backend

        def embed() -> None:
            ids = token_ids.copy()
            if (ids < 0).any():
                ids[ids < 0] = sampled.read()[-1 - ids[ids < 0]]
            x.write(mix(ids.astype(np.uint64)[:, None] + np.uint64(1)))

        def project(layer: int) -> None:
            now = x.read()
            k.write(now * np.uint64(3 + layer))
            v.write(now ^ np.uint64(7))
            out.write(np.zeros_like(now))

        def choose() -> None:
            tokens.write((x.read()[logit_rows, 0] % np.uint64(STOP + 1)).astype(np.int64))
            if due == "not_finite":
                backend.overflow(plan, logit_rows[::2])

        # What reads it later must find numbers there, whatever becomes of the step.
        self._stream.launch(lambda: tokens.write(np.zeros(len(logit_rows), np.int64)))
        step.launch(embed)
        for layer in range(LAYERS):
            step.launch(lambda layer=layer: project(layer))
            attention.run(layer, step, k, v, out)
            step.launch(lambda: x.write(mix(x.read() + out.read())))
            if due == "engine":
                raise Fault("engine")
        step.launch(choose)
        return DeviceOutput(step, tokens, due)


class DeviceTokens:
    """See `cleave.runtime.pending.DeviceTokens`."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream

    @property
    def draws(self) -> bool:
        """See DeviceTokens: in lockstep the host does."""
        return False

    def takes(self, state: SamplingState | None, *, in_lockstep: bool = False) -> bool:
        """All of them one step ahead: their grammars allow everything. In lockstep the host chooses."""
        return not in_lockstep

    def forget(self, sequence: int) -> None:
        """See DeviceTokens."""

    def choose(self, output: DeviceOutput, wanted: LogitRows) -> DevicePending:
        """Copy the tokens of a step to the host."""
        host: list[int] = []
        arrived = self._stream.launch(lambda: host.extend(output.likeliest.read().tolist()))
        return DevicePending(self._stream, output, host, arrived, wanted)


class DevicePending:
    """See `cleave.runtime.pending.Pending`."""

    def __init__(
        self, stream: Stream, output: DeviceOutput, host: list[int], arrived: int, wanted: LogitRows
    ) -> None:
        self._stream, self._output, self._host, self._arrived = stream, output, host, arrived
        self._states = wanted.states
        self.tokens = output.likeliest

    def wait(self) -> Sampled:
        """Wait for the step; raises what made it fail."""
        if self._output.best == "interrupt":
            raise KeyboardInterrupt
        self._stream.wait(self._arrived)
        if self._output.logits.error is not None:
            raise self._output.logits.error
        tokens = list(self._host)
        if self._output.best == "not_finite":
            tokens[::2] = [-1] * len(tokens[::2])
        nothing = np.empty(0)
        return Sampled(
            tokens,
            [
                None if state is None else TokenLogprobs(token, 0.0, 1, nothing, nothing)
                for token, state in zip(tokens, self._states, strict=True)
            ],
        )
