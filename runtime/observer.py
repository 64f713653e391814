"""What the engine thread tells those who watch it: steps, and how requests fared."""

from __future__ import annotations

import contextvars
import logging
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from cleave.runtime.generation import Answer, Generation
from cleave.runtime.request import FinishReason
from cleave.runtime.step import Step, StepOutcome

_log = logging.getLogger("cleave")

StepKind = Literal["prefill", "decode", "mixed"]


@dataclass(slots=True)
class StepReport:
    """A step that was committed. Durations are in seconds."""

    chunks: Step
    """Its tokens by sequence; the sequences themselves have moved on."""
    ended: float
    """When, on the clock of `time.monotonic`."""
    seconds: float
    """From the first thought about it, or the end of the step before it where that was later, to its end."""
    prefill_tokens: int = 0
    """Rows of prompts, and of what was computed before a preemption."""
    decode_tokens: int = 0
    """Rows of sequences that are decoding: one each."""
    generated_tokens: int = 0
    errors: int = 0
    """Sequences that made it fail."""
    queued_for: list[float] = field(default_factory=list)
    """How long each sequence had waited that had its first tokens computed here."""
    first_token_after: list[float] = field(default_factory=list)
    """Time since they were asked for of the sequences that got their first token here."""
    token_gaps: list[float] = field(default_factory=list)
    """Time since its last token of every other sequence that got one here."""

    @property
    def kind(self) -> StepKind:
        """Whether prompts, decoding sequences, or both were in it."""
        if not self.decode_tokens:
            return "prefill"
        return "mixed" if self.prefill_tokens else "decode"


@dataclass(frozen=True, slots=True)
class AnswerReport:
    """An answer that ended. Times are on the clock of `time.monotonic`; None: it did not get that far."""

    request_id: str
    index: int
    """Which of the `n` answers of the request."""
    finish_reason: FinishReason
    error: str | None
    prompt_tokens: int
    cached_tokens: int
    """Tokens of the prompt that the prefix cache had."""
    generated_tokens: int
    preemptions: int
    asked: float
    started: float | None
    """When the first step that had tokens of it began."""
    first_token: float | None
    last_token: float | None
    ended: float
    context: contextvars.Context
    """That of the caller when it asked, for what it carries along, such as the span that is current."""

    @property
    def seconds(self) -> float:
        """From asking to the end."""
        return self.ended - self.asked

    @property
    def queue_seconds(self) -> float:
        """From asking to the first step, or to the end where there was none."""
        return (self.ended if self.started is None else self.started) - self.asked


class EngineObserver(Protocol):
    """Is told by the engine thread, which waits meanwhile: be quick, and raise nothing."""

    def stepped(self, step: StepReport) -> None:
        """A step was committed."""

    def answered(self, answer: AnswerReport) -> None:
        """An answer ended, whatever the reason."""


@dataclass(slots=True)
class _Times:
    asked: float
    context: contextvars.Context
    started: float | None = None
    first_token: float | None = None
    last_token: float | None = None


class Observers:
    """The observers of one engine thread. While there are none, nothing is measured or kept.

    An observer that raises is logged and dropped.
    """

    def __init__(self) -> None:
        self._observers: tuple[EngineObserver, ...] = ()
        self._lock = threading.Lock()
        self._times: dict[int, _Times] = {}

    def add(self, observer: EngineObserver) -> None:
        """Tell it of the steps from now on, and of the requests that are submitted from now on."""
        with self._lock:
            self._observers = (*self._observers, observer)

    def remove(self, observer: EngineObserver) -> None:
        """Tell it nothing more; nothing happens where it is not one."""
        with self._lock:
            self._observers = tuple(one for one in self._observers if one is not observer)
            if not self._observers:
                self._times.clear()

    def submitted(self, generations: Sequence[Generation]) -> None:
        """Somebody asks for these; called in the thread that does."""
        if not self._observers:
            return
        now, context = time.monotonic(), contextvars.copy_context()
        for generation in generations:
            for answer in generation.answers:
                self._times[answer.sequence.id] = _Times(now, context)

    def stepped(self, step: Step, outcome: StepOutcome, began: float) -> None:
        """A step was committed that began at the time `began`."""
        if not self._observers:
            return
        now = time.monotonic()
        report = StepReport(step, now, now - began)
        report.generated_tokens, report.errors = len(outcome.tokens), len(outcome.errors)
        for chunk in step:
            if not chunk.is_stored:
                continue  # It was left out, or failed.
            if chunk.count > 1 or chunk.start < len(chunk.sequence.prompt):
                report.prefill_tokens += chunk.count
            else:
                report.decode_tokens += 1
            times = self._times.get(chunk.sequence.id)
            if times is None:
                continue
            if times.started is None:
                times.started = began
                report.queued_for.append(began - times.asked)
            if chunk.sequence.id in outcome.tokens:
                if times.last_token is None:
                    times.first_token = now
                    report.first_token_after.append(now - times.asked)
                else:
                    report.token_gaps.append(now - times.last_token)
                times.last_token = now
        for observer in self._observers:
            try:
                observer.stepped(report)
            except Exception as error:
                self._drop(observer, error)

    def answered(self, generation: Generation, answer: Answer) -> None:
        """An answer ended."""
        times = self._times.pop(answer.sequence.id, None)
        if times is None or answer.finish_reason is None:
            return
        sequence = answer.sequence
        report = AnswerReport(
            request_id=generation.request_id,
            index=answer.index,
            finish_reason=answer.finish_reason,
            error=answer.error,
            prompt_tokens=len(sequence.prompt),
            cached_tokens=min(sequence.found or 0, len(sequence.prompt)),
            generated_tokens=len(sequence.output),
            preemptions=sequence.preemptions,
            asked=times.asked,
            started=times.started,
            first_token=times.first_token,
            last_token=times.last_token,
            ended=time.monotonic(),
            context=times.context,
        )
        for observer in self._observers:
            try:
                observer.answered(report)
            except Exception as error:
                self._drop(observer, error)

    def _drop(self, observer: EngineObserver, error: Exception) -> None:
        _log.error("an observer of the engine fails and is dropped: %r", observer, exc_info=error)
        self.remove(observer)
