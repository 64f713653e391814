"""Sampling parameters from the fields of a request."""

from __future__ import annotations

from typing import Any

from cleave.runtime.request import SamplingParams
from cleave.runtime.server.errors import Refused
from cleave.runtime.server.openai.schemas import (
    ChatRequest,
    CompletionRequest,
    GenerationFields,
    ResponseFormat,
    StructuredOutputs,
)
from cleave.runtime.server.service import Service
from cleave.runtime.structured.params import StructuredOutput

DEFAULT_COMPLETION_TOKENS = 16
"""OpenAI's default of `max_tokens` for completions; for chat there is no limit but the context."""
_SAME = (
    "n",
    "stop",
    "seed",
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "presence_penalty",
    "frequency_penalty",
    "repetition_penalty",
    "min_tokens",
    "stop_token_ids",
    "include_stop_str_in_output",
    "ignore_eos",
    "allowed_token_ids",
    "bad_words",
)
"""Fields that have the same name and meaning in SamplingParams."""
_ANY_MODEL = ("tgi", "dummy")
"""What clients of text-generation-inference send, whatever the model."""


def check_model(service: Service, asked: str | None) -> None:
    """Raises Refused for a model that is not served."""
    if asked is not None and asked not in (service.model_name, *_ANY_MODEL):
        raise Refused(
            "model_not_found",
            f"the model {asked!r:.200} is not served; {service.model_name!r} is",
            param="model",
        )


def completion_params(body: CompletionRequest) -> SamplingParams:
    """Of a completion. Raises Refused or RequestError."""
    if body.best_of not in (None, body.n or 1):
        raise Refused(
            "validation", f"best_of is {body.best_of}; it is supported where it equals n", param="best_of"
        )
    most = DEFAULT_COMPLETION_TOKENS if body.max_tokens is None else body.max_tokens
    logprobs: dict[str, Any] = {}
    if body.logprobs is not None:
        logprobs["logprobs"] = body.logprobs
        if body.echo:
            logprobs["prompt_logprobs"] = body.logprobs
    return SamplingParams(max_tokens=most, structured=_structured(body, None), **logprobs, **_common(body))


def chat_params(body: ChatRequest, *, structured: StructuredOutput | None = None) -> SamplingParams:
    """Of a chat completion; `structured` is what a tool demands. Raises Refused or RequestError."""
    if body.max_tokens is not None and body.max_completion_tokens is not None:
        raise Refused("validation", "max_tokens and max_completion_tokens are one thing; give one of them")
    if body.top_logprobs is not None and not body.logprobs:
        raise Refused("validation", "top_logprobs needs logprobs=true", param="top_logprobs")
    most = body.max_tokens if body.max_completion_tokens is None else body.max_completion_tokens
    logprobs = body.top_logprobs or 0 if body.logprobs else None
    asked = _structured(body, body.response_format)
    if structured is not None and asked is not None:
        raise Refused(
            "validation", "a tool that must be called goes without response_format", param="tool_choice"
        )
    return SamplingParams(max_tokens=most, structured=structured or asked, logprobs=logprobs, **_common(body))


def _common(body: GenerationFields) -> dict[str, Any]:
    given = {name: getattr(body, name) for name in _SAME if getattr(body, name) is not None}
    if body.logit_bias:
        given["logit_bias"] = {_token(name): bias for name, bias in body.logit_bias.items()}
    return given


def _token(name: str) -> int:
    try:
        return int(name)
    except ValueError:
        raise Refused(
            "validation", f"logit_bias has the key {name!r:.80}; keys are token ids", param="logit_bias"
        ) from None


def _structured(body: GenerationFields, response_format: ResponseFormat | None) -> StructuredOutput | None:
    by_format = None if response_format is None else _of_format(response_format)
    by_name = None if body.structured_outputs is None else _of_name(body.structured_outputs)
    if by_format is not None and by_name is not None:
        raise Refused("validation", "response_format and structured_outputs are one thing; give one of them")
    return by_format or by_name


def _of_name(given: StructuredOutputs) -> StructuredOutput:
    return StructuredOutput(
        json_schema=given.json_schema,
        json_object=given.json_object,
        regex=given.regex,
        choice=given.choice,
        grammar=given.grammar,
        disable_any_whitespace=given.disable_any_whitespace,
    )


def _of_format(given: ResponseFormat) -> StructuredOutput | None:
    schema = given.json_schema
    if (schema is None) == (given.type == "json_schema"):
        raise Refused("validation", "json_schema goes with the type json_schema", param="response_format")
    if given.type == "json_schema" and schema is not None and given.value is None:
        return StructuredOutput(json_schema=schema.json_schema)
    if given.type in ("json_object", "json") and given.value is not None:
        return StructuredOutput(json_schema=given.value)
    if given.type == "regex" and isinstance(given.value, str):
        return StructuredOutput(regex=given.value)
    if given.value is not None or given.type in ("json", "regex"):
        raise Refused(
            "validation", f"the type {given.type} and this value do not go together", param="response_format"
        )
    return StructuredOutput(json_object=True) if given.type == "json_object" else None
