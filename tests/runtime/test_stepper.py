"""The step as a transaction: who fails, who goes on, and how many runs that takes."""

from __future__ import annotations

import logging
import math
from typing import Any

import numpy as np
import pytest
import torch

from cleave.errors import EngineError
from cleave.kvcache.server import AttentionServer
from cleave.kvcache.spec import AttentionSpec
from cleave.runtime import stepper as stepper_module
from cleave.runtime.device_tokens import SampledTokens
from cleave.runtime.engines.engine import DeviceOutput
from cleave.runtime.logit_rows import LogitRows
from cleave.runtime.pending import LikeliestTokens
from cleave.runtime.sampling.sampler import Sampler
from cleave.runtime.sampling.state import SamplingState
from cleave.runtime.sampling_params import SamplingDefaults, SamplingParams
from cleave.runtime.sequence import Sequence
from cleave.runtime.step import ScheduledChunk, Step, StepOutcome
from cleave.runtime.stepper import Stepper, _runs_allowed


class Engine:
    """Fails on steps with a token of `bad`, in each run whose number is in `faults`, and interrupts."""

    kind, notes = "test", ()

    def __init__(self) -> None:
        self.bad: set[int] = set()
        self.faults: set[int] = set()
        self.interrupt_at: int | None = None
        self.runs: list[list[int]] = []

    def run(self, token_ids: Any, logit_rows: Any, attention: Any) -> Any:
        self.runs.append(token_ids.tolist())
        if len(self.runs) - 1 == self.interrupt_at:
            raise KeyboardInterrupt
        if len(self.runs) - 1 in self.faults:
            raise RuntimeError("the wires are loose")
        if self.bad & set(self.runs[-1]):
            raise EngineError("token is bad")
        logits = np.zeros((len(logit_rows), 200), np.float32)
        logits[np.arange(len(logit_rows)), token_ids[logit_rows] + 100] = 1
        return logits

    def close(self) -> None: ...


class Rig:
    """`count` sequences of one token each; sequence n has the token n, and n + 100 comes next."""

    def __init__(self, count: int) -> None:
        self.engine = Engine()
        self.server = AttentionServer(
            [AttentionSpec(1, 1, 8, 1.0)], num_pages=count, max_position=64, max_tokens=512, threads=1
        )
        self.stepper = Stepper(self.engine, self.server)
        sequences = [Sequence(name, (name,), 4, frozenset()) for name in range(count)]
        for name in range(count):
            self.server.open(name)
        self.step: Step = tuple(ScheduledChunk(sequence, 0, 1, True) for sequence in sequences)

    def run(self, step: Step | None = None) -> StepOutcome:
        outcome = StepOutcome()
        self.stepper.run(self.step if step is None else step, outcome)
        self.server.check()
        return outcome

    def committed(self) -> set[int]:
        return {chunk.sequence.id for chunk in self.step if self.server.length(chunk.sequence.id)}


@pytest.fixture(autouse=True)
def _quiet(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL, "cleave")


def test_a_step_that_works_runs_once() -> None:
    rig = Rig(5)
    assert rig.run() == StepOutcome({name: name + 100 for name in range(5)}, {})
    assert len(rig.engine.runs) == 1
    assert rig.committed() == set(range(5))


@pytest.mark.parametrize("culprits", [{0}, {63}, {17, 40}, {1, 2, 3, 4}])
def test_only_the_culprits_end_with_their_reason(culprits: set[int]) -> None:
    rig = Rig(64)
    rig.engine.bad = culprits
    outcome = rig.run()
    assert outcome.errors == dict.fromkeys(culprits, "token is bad")
    assert set(outcome.tokens) == set(range(64)) - culprits == rig.committed()
    assert len(rig.engine.runs) <= 1 + len(culprits) * (2 * 6 + 1)


def test_a_fault_that_passes_is_nobodys() -> None:
    rig = Rig(8)
    rig.engine.faults = {0}
    assert set(rig.run().tokens) == set(range(8))
    assert len(rig.engine.runs) == 3
    alone = Rig(1)
    alone.engine.faults = {0}
    assert alone.run() == StepOutcome({0: 100}, {})


def test_a_request_that_fails_alone_has_the_type_of_a_foreign_error_in_its_reason() -> None:
    rig = Rig(1)
    rig.engine.faults = {0, 1}
    assert rig.run().errors == {0: "RuntimeError: the wires are loose"}


def test_the_runs_of_one_step_are_bounded_and_who_was_put_off_comes_first_next_time() -> None:
    rig = Rig(100)
    rig.engine.bad = set(range(100))
    done: set[int] = set()
    while len(done) < 100:
        before = len(rig.engine.runs)
        rest = tuple(chunk for chunk in rig.step if chunk.sequence.id not in done)
        put_off = set(rig.stepper._put_off)
        outcome = rig.run(rest)
        assert outcome.errors
        assert len(rig.engine.runs) - before <= _runs_allowed(len(rest))
        if put_off and len(outcome.errors) <= len(put_off):
            assert set(outcome.errors) <= put_off
        done |= set(outcome.errors)
    assert not rig.committed()


def test_an_interrupt_undoes_its_part_and_goes_on_to_the_caller() -> None:
    rig = Rig(4)
    rig.engine.faults, rig.engine.interrupt_at = {0}, 2
    outcome = StepOutcome()
    with pytest.raises(KeyboardInterrupt):
        rig.stepper.run(rig.step, outcome)
    rig.server.check()
    assert set(outcome.tokens) == rig.committed() == {0, 1}
    assert not rig.server.pages.has_step
    assert set(rig.run(rig.step[2:]).tokens) == {2, 3}


def test_logits_that_are_no_numbers_are_the_fault_of_their_row_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rig = Rig(8)
    run = rig.engine.run

    def overflow(token_ids: Any, logit_rows: Any, attention: Any) -> Any:
        logits = run(token_ids, logit_rows, attention)
        logits[token_ids[logit_rows] == 5] = np.nan
        return logits

    monkeypatch.setattr(rig.engine, "run", overflow)
    outcome = rig.run()
    assert set(outcome.errors) == {5}
    assert "not finite" in outcome.errors[5]
    assert set(outcome.tokens) == set(range(8)) - {5}


# Logits that stay on the device.


class DeviceEngine(Engine):
    """The same logits, as a torch tensor; `run` is not for steps that the device can sample."""

    sick = -1
    """A token whose row has no numbers."""

    def run(self, token_ids: Any, logit_rows: Any, attention: Any) -> Any:
        raise AssertionError("the logits came to the host")

    def launch(self, token_ids: Any, logit_rows: Any, attention: Any, sampled: Any = None) -> DeviceOutput:
        logits = torch.from_numpy(Engine.run(self, token_ids, logit_rows, attention))
        logits[torch.from_numpy(token_ids[logit_rows] == self.sick)] = torch.nan
        best, likeliest = logits.max(dim=-1)
        return DeviceOutput(logits, likeliest, best)


class OnlyEven:
    """A grammar that allows even tokens from 60 on."""

    is_complete = False

    def mask(self) -> Any:
        tokens = np.arange(224)
        allowed = (tokens % 2 == 0) & (tokens >= 60)
        return np.packbits(allowed, bitorder="little").view(np.uint32)

    def accept(self, token: int) -> None: ...


def sampling(sequence: Sequence, constraint: Any = None, **params: Any) -> None:
    resolved = SamplingParams(**params).resolved(SamplingDefaults())
    sequence.sampling = SamplingState(resolved, sequence.prompt, 200, constraint=constraint)


@pytest.mark.filterwarnings("ignore:Conversion of an array with ndim:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:(overflow|invalid value) encountered:RuntimeWarning")
def test_in_lockstep_the_device_samples_structured_output_too() -> None:
    """A device sampler in Triton's interpreter; a row that fails is found as any other culprit."""
    pytest.importorskip("triton")
    from cleave.runtime.sampling.device.sampler import DeviceSampler

    rig = Rig(4)
    rig.engine = engine = DeviceEngine()
    tokens = SampledTokens(LikeliestTokens("cpu", 4), DeviceSampler(200, "cpu", 4))
    rig.stepper = Stepper(engine, rig.server, tokens)
    sequences = [chunk.sequence for chunk in rig.step]
    sampling(sequences[1], temperature=0.01, logit_bias={150: 5.0}, logprobs=2, seed=1)
    sampling(sequences[3], OnlyEven(), temperature=0.0, logit_bias={61: 9.0})
    assert not rig.stepper.can_launch(rig.step)
    engine.sick = 2
    outcome = rig.run()
    assert outcome.tokens == {0: 100, 1: 150, 3: 60}
    assert "not finite" in outcome.errors[2]
    assert outcome.logprobs[1].top_tokens.tolist() == [101, 0]
    assert rig.committed() == {0, 1, 3}


class TakesLogits(DeviceEngine):
    """Its logits may come to the host."""

    def run(self, token_ids: Any, logit_rows: Any, attention: Any) -> Any:
        return Engine.run(self, token_ids, logit_rows, attention)


@pytest.mark.filterwarnings("ignore:Conversion of an array with ndim:DeprecationWarning")
def test_where_the_device_draws_the_hosts_sampler_is_made_for_who_needs_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("triton")
    from cleave.runtime.sampling.device.sampler import DeviceSampler

    made: list[Sampler] = []

    def make() -> Sampler:
        made.append(Sampler())
        return made[-1]

    rig, likeliest = Rig(2), LikeliestTokens("cpu", 2)
    monkeypatch.setattr(stepper_module, "Sampler", make)
    rig.stepper = Stepper(TakesLogits(), rig.server, SampledTokens(likeliest, DeviceSampler(200, "cpu", 2)))
    sampling(rig.step[0].sequence, temperature=0.01, logprobs=1, seed=1)
    assert rig.run(rig.step[:1]).tokens == {0: 100}
    assert not made
    scored = Sequence(2, (3, 4), 4, frozenset())
    sampling(scored, temperature=0.0, prompt_logprobs=0)
    rig.server.open(2)
    outcome = rig.run((ScheduledChunk(scored, 0, 2, True),))
    assert len(made) == 1
    assert outcome.tokens == {2: 104}
    (first,) = outcome.prompt_logprobs[2]
    assert first.logprob == pytest.approx(-math.log(199 + math.e))
    Stepper(TakesLogits(), rig.server, likeliest)
    assert len(made) == 2


def test_a_chunk_that_is_scored_whole_asks_for_no_more_rows_than_it_has() -> None:
    scored, other = (Sequence(number, (3, 4, 5, 6), 4, frozenset()) for number in (1, 2))
    sampling(scored, prompt_logprobs=0)
    whole = LogitRows((ScheduledChunk(scored, 0, 3, False),))
    assert whole.rows.tolist() == [0, 1, 2]
    assert (whole.sampled, whole.owners, whole.states) == (1, [scored], [None])
    behind = LogitRows((ScheduledChunk(other, 0, 2, False), ScheduledChunk(scored, 0, 2, False)))
    assert behind.rows.tolist() == [2, 3]
    assert behind.owners == [scored]
    sampled = LogitRows((ScheduledChunk(other, 0, 4, True), ScheduledChunk(scored, 0, 2, False)))
    assert sampled.rows.tolist() == [3, 4, 5]
    assert sampled.owners == [other]
    assert LogitRows((ScheduledChunk(other, 0, 2, False),)).rows.tolist() == [1]
