"""The LLM: prompts in, text out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any

from cleave.errors import RequestError
from cleave.runtime.bar import GenerationBar
from cleave.runtime.chat import Message
from cleave.runtime.collector import Collector
from cleave.runtime.loaded import Loaded
from cleave.runtime.request import Completion, Prompt, SamplingParams
from cleave.runtime.sampling_params import check_params
from cleave.runtime.stream import Stream

_Params = SamplingParams | Sequence[SamplingParams] | None


class LLM(Loaded):
    """A model that answers prompts. Any number of threads may use it, and any number live in a process.

    >>> with LLM("model_files/demo-artifact") as llm:
    ...     for completion in llm.generate(["San Francisco is a"], SamplingParams(max_tokens=32)):
    ...         print(completion.text)
    """

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        params: _Params = None,
        *,
        priority: int = 0,
        progress: bool | None = None,
    ) -> list[Completion]:
        """Answer all prompts in one batch; the answers come in the order of the prompts.

        A prompt is text or a list of token ids; `params` is for all of them, or one for each. With
        `n` answers to a prompt, they follow one another. Of requests that run at the same time, those
        with a lower `priority` are more urgent. A request that makes the engine fail has the
        finish_reason "error", and the others are answered. `progress` shows a bar on standard error;
        None: where that is a terminal and it takes more than two seconds. Raises RequestError before
        anything runs if one of the prompts is not allowed.
        """
        listed = _as_list(prompts)
        wanted = _one_for_each(params, len(listed))
        collector = Collector(sum(1 if one is None else one.n for one in wanted))
        generations = [
            self._intake.generation(prompt, one, collector, priority=priority)
            for prompt, one in zip(listed, wanted, strict=True)
        ]
        self._thread.submit(generations)
        try:
            with GenerationBar(collector, progress) as bar:
                bar.wait()
        except BaseException:
            self._discard(generations)
            raise
        return [completion for generation in generations for completion in generation.completions()]

    def check(self, prompt: Prompt, params: SamplingParams | None = None) -> None:
        """Raises RequestError where `generate` would refuse a prompt; nothing is run, and nothing held."""
        self._intake.generation(prompt, params, Collector(1 if params is None else check_params(params).n))

    def stream(
        self,
        prompt: Prompt,
        params: SamplingParams | None = None,
        *,
        request_id: str | None = None,
        priority: int = 0,
    ) -> Stream:
        """Answer one prompt piece by piece. Leaving the iterator early calls the request off.

        Raises RequestError at once if the prompt is not allowed or `request_id` is in use.
        """
        return Stream(self._thread, *self._submit(prompt, params, request_id, priority))

    def chat(
        self,
        messages: Sequence[Message] | Sequence[Sequence[Message]],
        params: _Params = None,
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        template_options: Mapping[str, Any] | None = None,
        priority: int = 0,
        progress: bool | None = None,
    ) -> list[Completion]:
        """Answer one conversation, or several in one batch, through the checkpoint's chat template.

        A message is {"role": ..., "content": ...}; `tools` and `template_options` go to the template.
        Otherwise as `generate`; raises RequestError also where the checkpoint has no chat template, or
        the template refuses the messages.
        """
        several = bool(messages) and not isinstance(messages[0], Mapping)
        conversations: Sequence[Any] = messages if several else [messages]
        prompts = [self.chat_prompt(one, tools, template_options) for one in conversations]
        return self.generate(prompts, params, priority=priority, progress=progress)

    def stream_chat(
        self,
        messages: Sequence[Message],
        params: SamplingParams | None = None,
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        template_options: Mapping[str, Any] | None = None,
        request_id: str | None = None,
        priority: int = 0,
    ) -> Stream:
        """Answer one conversation piece by piece; see `chat` and `stream`."""
        prompt = self.chat_prompt(messages, tools, template_options)
        return self.stream(prompt, params, request_id=request_id, priority=priority)

    def chat_prompt(
        self,
        messages: Sequence[Message],
        tools: Sequence[Mapping[str, Any]] | None = None,
        template_options: Mapping[str, Any] | None = None,
    ) -> tuple[int, ...]:
        """The tokens of a conversation, up to where the model's answer begins."""
        return self._model.chat_prompt(messages, tools, template_options)

    def wait_until_idle(self, timeout: float | None = None) -> bool:
        """Whether nothing is under way any more, after at most `timeout` seconds; None: however long."""
        return self._thread.wait_until_idle(timeout)

    def __enter__(self) -> LLM:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


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


def _one_for_each(params: _Params, prompts: int) -> Sequence[SamplingParams | None]:
    if params is None or isinstance(params, SamplingParams):
        return [params] * prompts
    given: Any = params
    if isinstance(given, str) or not isinstance(given, Sequence):
        check_params(given)
    if len(params) != prompts:
        raise RequestError(f"there are {prompts} prompts and {len(params)} params; give one for each, or one")
    return [one if one is None else check_params(one) for one in params]
