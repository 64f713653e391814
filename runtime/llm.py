"""The LLM: prompts in, text out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from cleave.export.artifact import Progress
from cleave.runtime.detokenizer import Detokenizer
from cleave.runtime.model import Model, ModelOptions
from cleave.runtime.request import Chunk, Completion, Prompt, SamplingParams
from cleave.runtime.scheduler import Scheduler
from cleave.runtime.sequence import Sequence as TokenSequence
from cleave.runtime.stepper import Stepper


@dataclass(slots=True)
class _Request:
    """A request under way, and the text of its answer so far."""

    prompt: Prompt
    sequence: TokenSequence
    detokenizer: Detokenizer
    text: str = ""
    reported: int = 0

    def advance(self) -> Chunk | None:
        """Take in what the last step generated; gives back what to stream, None where nothing is certain."""
        new = self.sequence.output[self.reported :]
        if not new:
            return None
        self.reported = len(self.sequence.output)
        text = self.detokenizer.push(new)
        if self.sequence.finish_reason is not None:
            text += self.detokenizer.finish()
        self.text += text
        return Chunk(text, tuple(new), self.sequence.finish_reason)


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

        `progress` is called with a file name, bytes done and bytes in all while digests are compared.
        Raises ArtifactError, EngineError, AttentionError or MissingPackage.
        """
        self._model = Model(artifact, ModelOptions(engine=engine, **options), progress)
        self._scheduler = Scheduler(
            max_tokens=self._model.max_tokens_per_step,
            max_sequences=self._model.options.max_sequences,
            num_pages=self._model.attention.num_pages,
            page_size=self._model.options.page_size,
        )
        self._stepper = Stepper(self._model.engine, self._model.attention)
        self._requests: dict[int, _Request] = {}
        self._next = 0

    @property
    def model(self) -> Model:
        """The engine, attention server and tokenizer behind it."""
        return self._model

    def generate(
        self, prompts: Prompt | Sequence[Prompt], params: SamplingParams | None = None
    ) -> list[Completion]:
        """Answer all prompts in one batch; the answers come in the order of the prompts.

        A prompt is text or a list of token ids. Raises RequestError before anything runs if one of
        the prompts is not allowed.
        """
        requests = self._submit(_as_list(prompts), params or SamplingParams())
        try:
            while any(request.sequence.finish_reason is None for request in requests):
                self._step()
                for request in requests:
                    request.advance()
        finally:
            self._forget(requests)
        return [_completion(request) for request in requests]

    def stream(self, prompt: Prompt, params: SamplingParams | None = None) -> Iterator[Chunk]:
        """Answer one prompt piece by piece. Leaving the iterator early gives its pages back."""
        requests = self._submit([prompt], params or SamplingParams())
        try:
            while requests[0].sequence.finish_reason is None:
                self._step()
                chunk = requests[0].advance()
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

    def _submit(self, prompts: list[Prompt], params: SamplingParams) -> list[_Request]:
        requests = []
        for offset, prompt in enumerate(prompts):
            sequence = self._model.sequence(self._next + offset, prompt, params)
            requests.append(_Request(prompt, sequence, Detokenizer(self._model.tokenizer, sequence.prompt)))
        self._next += len(prompts)
        for request in requests:
            self._requests[request.sequence.id] = request
            self._scheduler.add(request.sequence)
        return requests

    def _step(self) -> None:
        for sequence in self._scheduler.admit():
            self._model.attention.open(sequence.id)
        step = self._scheduler.schedule()
        for sequence in self._scheduler.commit(step, self._stepper.run(step)):
            self._model.attention.close(sequence.id)

    def _forget(self, requests: list[_Request]) -> None:
        """Drop requests, finished or not."""
        for request in requests:
            if request.sequence.finish_reason is None:
                running = self._scheduler.abort(request.sequence)
                if running:
                    self._model.attention.close(request.sequence.id)
            del self._requests[request.sequence.id]


def _as_list(prompts: Prompt | Sequence[Prompt]) -> list[Prompt]:
    if isinstance(prompts, str):
        return [prompts]
    if prompts and all(isinstance(item, int) for item in prompts):
        return [prompts]  # type: ignore[list-item]
    return list(prompts)  # type: ignore[arg-type]


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
    )
