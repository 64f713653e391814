"""The LLM: prompts in, text out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from cleave.errors import RequestError
from cleave.export.artifact import Progress
from cleave.runtime.detokenizer import Detokenizer
from cleave.runtime.model import Model, ModelOptions
from cleave.runtime.request import Chunk, Completion, Prompt, SamplingParams
from cleave.runtime.scheduler import Scheduler
from cleave.runtime.sequence import Sequence as TokenSequence
from cleave.runtime.step import StepOutcome
from cleave.runtime.stepper import Stepper


@dataclass(slots=True)
class _Request:
    """A request under way, and the text of its answer so far."""

    prompt: Prompt
    sequence: TokenSequence
    detokenizer: Detokenizer
    text: str = ""
    reported: int = 0
    is_over: bool = False

    def advance(self) -> Chunk | None:
        """Take in what the last step generated; gives back what to stream, None where there is nothing.

        The chunk with the finish reason comes once.
        """
        sequence = self.sequence
        new = sequence.output[self.reported :]
        ends = sequence.finish_reason is not None and not self.is_over
        if not new and not ends:
            return None
        self.reported = len(sequence.output)
        text = self.detokenizer.push(new)
        if ends:
            self.is_over = True
            text += self.detokenizer.finish()
        self.text += text
        return Chunk(text, tuple(new), sequence.finish_reason, sequence.error)


class LLM:
    """A model that answers prompts. Use it from one thread at a time; any number live in one process.

    >>> with LLM("model_files/demo-artifact") as llm:
    ...     for completion in llm.generate(["San Francisco is a"], SamplingParams(max_tokens=32)):
    ...         print(completion.text)
    """

    def __init__(
        self,
        artifact: str | Path,
        engine: str | None = None,
        *,
        progress: Progress | None = None,
        **options: Any,
    ) -> None:
        """Load the artifact in a folder. `options` are those of `ModelOptions`.

        `progress` is called with what is done ("checking weights.safetensors", "building middle"), how much
        of it, and how much there is. Raises ArtifactError, EngineError, CacheError, AttentionError or
        MissingPackage.
        """
        self._model = Model(artifact, ModelOptions(engine=engine, **options), progress)
        self._scheduler = Scheduler(
            self._model.attention.pages,
            max_tokens=self._model.max_tokens_per_step,
            max_sequences=self._model.options.max_sequences,
        )
        self._stepper = Stepper(self._model.engine, self._model.attention)
        self._next = 0

    @property
    def model(self) -> Model:
        """The engine, attention server and tokenizer behind it."""
        return self._model

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        priority: int = 0,
    ) -> list[Completion]:
        """Answer all prompts in one batch; the answers come in the order of the prompts.

        A prompt is text or a list of token ids; `params` is for all of them, or one for each. Of
        requests that run at the same time, those with a lower `priority` are more urgent. A request
        that makes the engine fail has the finish_reason "error", and the others are answered. Raises
        RequestError before anything runs if one of the prompts is not allowed.
        """
        listed = _as_list(prompts)
        requests = self._submit(listed, _one_for_each(params, len(listed)), priority)
        try:
            while any(request.sequence.finish_reason is None for request in requests):
                self._step()
                for request in requests:
                    request.advance()
        finally:
            self._forget(requests)
        return [_completion(request) for request in requests]

    def stream(
        self, prompt: Prompt, params: SamplingParams | None = None, *, priority: int = 0
    ) -> Iterator[Chunk]:
        """Answer one prompt piece by piece. Leaving the iterator early calls the request off."""
        requests = self._submit([prompt], [params or SamplingParams()], priority)
        request = requests[0]
        try:
            while not request.is_over:
                if request.sequence.finish_reason is None:
                    self._step()
                chunk = request.advance()
                if chunk is not None:
                    yield chunk
        finally:
            self._forget(requests)

    def close(self) -> None:
        """Give back memory and threads; the LLM is not used afterwards."""
        self._model.close()

    def __enter__(self) -> LLM:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _submit(
        self, prompts: list[Prompt], params: Sequence[SamplingParams], priority: int
    ) -> list[_Request]:
        if not isinstance(priority, int):
            raise RequestError(f"priority is {priority!r}; it must be a whole number, lower is more urgent")
        requests = []
        for offset, (prompt, wanted) in enumerate(zip(prompts, params, strict=True)):
            sequence = self._model.sequence(self._next + offset, prompt, wanted, priority)
            requests.append(_Request(prompt, sequence, Detokenizer(self._model.tokenizer, sequence.prompt)))
        self._next += len(prompts)
        for request in requests:
            self._scheduler.add(request.sequence)
        return requests

    def _step(self) -> None:
        step = self._scheduler.schedule()
        if not step:
            raise RuntimeError("the scheduler has nothing to run, and requests are waiting")
        outcome = StepOutcome()
        try:
            self._stepper.run(step, outcome)
        finally:
            self._scheduler.commit(outcome)

    def _forget(self, requests: list[_Request]) -> None:
        """Call off those that have not ended."""
        for request in requests:
            self._scheduler.abort(request.sequence)


def _as_list(prompts: Prompt | Sequence[Prompt]) -> list[Prompt]:
    if isinstance(prompts, str):
        return [prompts]
    try:
        listed: list[Any] = list(prompts)
        if isinstance(prompts, bytes):
            raise TypeError
    except TypeError:
        raise RequestError(f"a prompt is text or a list of token ids, and not {prompts!r}") from None
    return [listed] if listed and all(map(_is_token, listed)) else listed


def _is_token(item: object) -> bool:
    """Whether it is no prompt by itself; numbers of torch have a length, and fail when asked for it."""
    return not hasattr(item, "__len__") or getattr(item, "shape", None) == ()


def _one_for_each(
    params: SamplingParams | Sequence[SamplingParams] | None, prompts: int
) -> Sequence[SamplingParams]:
    if params is None or isinstance(params, SamplingParams):
        return [params or SamplingParams()] * prompts
    if len(params) != prompts:
        raise RequestError(f"there are {prompts} prompts and {len(params)} params; give one for each, or one")
    return params


def _completion(request: _Request) -> Completion:
    sequence = request.sequence
    if sequence.finish_reason is None:
        raise RuntimeError(f"sequence {sequence.id} was reported before its end")
    return Completion(
        prompt=request.prompt if isinstance(request.prompt, str) else None,
        prompt_token_ids=sequence.prompt,
        text=request.text,
        token_ids=tuple(sequence.output),
        finish_reason=sequence.finish_reason,
        error=sequence.error,
        cached_tokens=min(sequence.found or 0, len(sequence.prompt)),
        preemptions=sequence.preemptions,
    )
