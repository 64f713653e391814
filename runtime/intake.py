"""The intake: what a user asks for becomes a generation, or is refused before anything is spent."""

from __future__ import annotations

import itertools
from dataclasses import replace

from cleave.errors import RequestError
from cleave.kvcache.budget import pages_for
from cleave.runtime.generation import Answer, Generation, Reader
from cleave.runtime.model import Model
from cleave.runtime.request import Prompt, SamplingParams
from cleave.runtime.sampling_params import check_params


class Intake:
    """Makes the generations of one model, in any thread."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self._sequences = itertools.count()
        self._requests = itertools.count()

    def generation(
        self,
        prompt: Prompt,
        params: SamplingParams | None,
        reader: Reader,
        *,
        request_id: str | None = None,
        priority: int = 0,
    ) -> Generation:
        """A generation for a prompt; `request_id` is made up where none is given.

        Raises RequestError for what is not allowed, MissingPackage where structured output needs one.
        """
        if not isinstance(priority, int):
            raise RequestError(f"priority is {priority!r}; it must be a whole number, lower is more urgent")
        if request_id is None:
            request_id = f"request-{next(self._requests)}"
        elif not isinstance(request_id, str) or not request_id:
            raise RequestError(f"request_id is {request_id!r}; it must be text, and not empty")
        params = SamplingParams() if params is None else check_params(params)
        first = self._answer(0, prompt, params, priority)
        tokens = first.sequence.prompt
        answers = [first, *(self._answer(index, tokens, params, priority) for index in range(1, params.n))]
        self._check_room(answers)
        return Generation(request_id, prompt, answers, reader, held_back=self._held_back(answers))

    def _answer(self, index: int, prompt: Prompt, params: SamplingParams, priority: int) -> Answer:
        if index and params.prompt_logprobs is not None:
            params = replace(params, prompt_logprobs=None)
        sequence = self._model.sequence(next(self._sequences), prompt, params, priority, stream=index)
        return Answer.of(index, sequence, params, self._model.tokenizer)

    def _check_room(self, answers: list[Answer]) -> None:
        """Raises RequestError where the answers to one prompt would push each other out of the cache."""
        longest = answers[0].sequence.max_length - 1
        needed = len(answers) * pages_for(longest, self._model.options.page_size)
        if len(answers) > 1 and needed > self._model.attention.num_pages:
            tokens = self._model.attention.num_pages * self._model.options.page_size
            raise RequestError(
                f"n is {len(answers)} and each answer may grow to {longest} cached tokens; the KV cache "
                f"holds {tokens} tokens in all: lower n or max_tokens, or raise kv_cache_bytes"
            )

    def _held_back(self, answers: list[Answer]) -> list[Answer]:
        """Those that had better wait for the first, to share the pages of the prompt with it."""
        first = answers[0].sequence
        shares = first.keys is not None and len(first.prompt) > self._model.options.page_size
        return answers[1:] if shares else []
