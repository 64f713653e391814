"""Text generation as a TorchPipe backend: the requests that TorchPipe gathers run in one batch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cleave.errors import RequestError
from cleave.plugins.torchpipe import omniback
from cleave.runtime.llm import LLM
from cleave.runtime.request import Completion, Prompt
from cleave.runtime.sampling_params import SamplingParams

MAX_BATCH = 64


def register_generate(llm: LLM, name: str = "CleaveGenerate", *, max_batch: int = MAX_BATCH) -> None:
    """Make a model known to TorchPipe under a name; names are the process's.

    A request has `data`, which is text or token ids, and may have `params`, a dict of fields of
    SamplingParams (`n` is 1). It gets `result`, the text, with `token_ids` and `finish_reason`. One that
    is refused has `error`, which says why, and an empty `result`; those beside it are answered. Raises
    MissingPackage.

    Requests of one batch come back together, so a node with `instance_num` 2 or more answers short ones
    sooner: the model itself batches all of them token by token, whichever instance they came through.
    """

    class CleaveGenerate:
        def forward(self, ios: Any) -> None:
            accepted, prompts, params = [], [], []
            for io in ios:
                try:
                    prompt, wanted = _request(io)
                    llm.check(prompt, wanted)
                except RequestError as error:
                    _refuse(io, str(error))
                    continue
                accepted.append(io)
                prompts.append(prompt)
                params.append(wanted)
            answers = llm.generate(prompts, params, progress=False) if prompts else []
            for io, answer in zip(accepted, answers, strict=True):
                _answer(io, answer)

        def max(self) -> int:
            return max_batch

    omniback().register(name, CleaveGenerate)


def _request(io: Any) -> tuple[Prompt, SamplingParams]:
    """Prompt and parameters of a request. Raises RequestError for what is not one."""
    data = io.get("data")
    if isinstance(data, str):
        prompt: Prompt = str(data)
    else:
        try:
            prompt = [int(token) for token in data]
        except (TypeError, ValueError):
            raise RequestError("data is neither text nor a list of token ids") from None
    given: Any = {}
    if "params" in io:  # its `get` has no default
        given = io["params"]
    if not isinstance(given, Mapping):
        raise RequestError("params is not a dict of fields of SamplingParams")
    fields = {str(name): _plain(value) for name, value in given.items()}
    if fields.get("n", 1) != 1:
        raise RequestError(f"n is {fields['n']}; a TorchPipe request has one answer")
    try:
        return prompt, SamplingParams(**fields)
    except TypeError as error:
        raise RequestError(f"params: {error}") from None


def _plain(value: Any) -> Any:
    """A value of TorchPipe's as Python has it: its strings and containers are types of its own."""
    if isinstance(value, str):
        return str(value)
    if isinstance(value, Mapping):
        return {_plain(key): _plain(item) for key, item in value.items()}
    if hasattr(value, "__iter__"):
        return [_plain(item) for item in value]
    return value


def _answer(io: Any, answer: Completion) -> None:
    io["result"] = answer.text
    io["token_ids"] = list(answer.token_ids)
    io["finish_reason"] = answer.finish_reason
    if answer.error is not None:
        io["error"] = answer.error


def _refuse(io: Any, why: str) -> None:
    # Without a result, TorchPipe ends the process.
    io["result"] = ""
    io["token_ids"] = []
    io["finish_reason"] = "error"
    io["error"] = why
