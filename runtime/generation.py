"""A request under way: its answers, as tokens become text."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Protocol

from cleave.runtime.detokenizer import Detokenizer
from cleave.runtime.mailbox import Wakeups
from cleave.runtime.request import Chunk, Completion, FinishReason, Logprob, Prompt, SamplingParams
from cleave.runtime.sequence import Sequence
from cleave.runtime.stop_strings import StopStrings
from cleave.runtime.tokenizer import Tokenizer


class Reader(Protocol):
    """Where the chunks of a request go."""

    @property
    def is_full(self) -> bool:
        """Whether too much lies unread."""

    def put(self, chunk: Chunk, wakeups: Wakeups) -> None:
        """Take a chunk; never blocks."""


@dataclass(slots=True, eq=False)
class Answer:
    """One of the answers to a prompt: a sequence, and its text so far."""

    index: int
    sequence: Sequence
    params: SamplingParams
    tokenizer: Tokenizer
    detokenizer: Detokenizer
    stops: StopStrings
    text: str = ""
    reported: int = 0
    finish_reason: FinishReason | None = None
    error: str | None = None

    @classmethod
    def of(cls, index: int, sequence: Sequence, params: SamplingParams, tokenizer: Tokenizer) -> Answer:
        """An answer of which nothing is generated."""
        stops = StopStrings(tuple(params.stop or ()), include=params.include_stop_str_in_output)
        detokenizer = Detokenizer(tokenizer, sequence.prompt)
        return cls(index, sequence, params, tokenizer, detokenizer, stops)

    @property
    def stop_reason(self) -> str | int | None:
        """See `Completion.stop_reason`."""
        if self.stops.found is not None or self.finish_reason != "stop":
            return self.stops.found
        last = self.sequence.output[-1]
        return last if last in (self.params.stop_token_ids or ()) else None

    def advance(self) -> Chunk | None:
        """Take in what the last step generated; gives back what to stream, None where there is nothing.

        A stop string ends the answer here, and its sequence has to be ended by the caller. The chunk
        with the finish reason comes once.
        """
        if self.finish_reason is not None:
            return None
        sequence = self.sequence
        new = tuple(sequence.output[self.reported :])
        if not new and sequence.finish_reason is None:
            return None
        text = self._text(new, ends=sequence.finish_reason is not None)
        logprobs = self._logprobs(self.reported)
        self.reported += len(new)
        if self.stops.found is not None:
            # Also where the same token used up max_tokens: the text did end by itself.
            self.finish_reason = "stop"
        else:
            self.finish_reason, self.error = sequence.finish_reason, sequence.error
        return self._chunk(text, new, logprobs)

    def give_up(self, why: FinishReason, error: str) -> Chunk | None:
        """End it whatever its sequence is doing; gives back the last chunk, None where it had ended."""
        if self.finish_reason is not None:
            return None
        self.finish_reason, self.error = why, error
        return self._chunk(self._text((), ends=True), (), self._logprobs(self.reported))

    def completion(self, prompt: Prompt, request_id: str) -> Completion:
        """The whole answer, once it has ended."""
        if self.finish_reason is None:
            raise RuntimeError(f"request {request_id} was reported before its end")
        sequence = self.sequence
        return Completion(
            prompt=prompt if isinstance(prompt, str) else None,
            prompt_token_ids=sequence.prompt,
            text=self.text,
            token_ids=tuple(sequence.output),
            finish_reason=self.finish_reason,
            stop_reason=self.stop_reason,
            error=self.error,
            index=self.index,
            request_id=request_id,
            logprobs=self._logprobs(0),
            prompt_logprobs=self._prompt_logprobs(),
            cached_tokens=min(sequence.found or 0, len(sequence.prompt)),
            preemptions=sequence.preemptions,
        )

    def _text(self, new: tuple[int, ...], *, ends: bool) -> str:
        """Text that is certain now."""
        text = self.detokenizer.push(new)
        if ends:
            text += self.detokenizer.finish()
        if self.reported + len(new) > self.params.min_tokens:
            text = self.stops.push(text)
        if ends:
            text += self.stops.finish()
        self.text += text
        return text

    def _logprobs(self, start: int) -> tuple[dict[int, Logprob], ...] | None:
        """Those of the tokens from `start` on; None where they were not asked for."""
        if self.params.logprobs is None:
            return None
        return tuple(entry.named(self.tokenizer) for entry in self.sequence.logprobs[start:])

    def _prompt_logprobs(self) -> tuple[dict[int, Logprob] | None, ...] | None:
        if self.params.prompt_logprobs is None:
            return None
        return (None, *(entry.named(self.tokenizer) for entry in self.sequence.prompt_logprobs))

    def _chunk(
        self, text: str, new: tuple[int, ...], logprobs: tuple[dict[int, Logprob], ...] | None
    ) -> Chunk:
        return Chunk(text, new, self.finish_reason, self.error, self.stop_reason, self.index, logprobs)


@dataclass(slots=True, eq=False)
class Generation:
    """A request: one prompt, one or more answers, and the reader of them."""

    request_id: str
    prompt: Prompt
    answers: list[Answer]
    reader: Reader
    on_end: Callable[[], None] | None = None
    held_back: list[Answer] = field(default_factory=list)
    """Answers that wait until the first one has filled the pages of the prompt, which they then share."""

    @property
    def is_over(self) -> bool:
        """Whether every answer has ended."""
        return all(answer.finish_reason is not None for answer in self.answers)

    def completions(self) -> list[Completion]:
        """The answers, in order, once all have ended."""
        first, *others = [answer.completion(self.prompt, self.request_id) for answer in self.answers]
        # The prompt is the same for all, so its logprobs are computed once.
        return [first, *(replace(other, prompt_logprobs=first.prompt_logprobs) for other in others)]
