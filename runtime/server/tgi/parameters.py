"""Sampling parameters from `parameters`, refused in the words of text-generation-inference."""

from __future__ import annotations

import secrets
from dataclasses import dataclass

from cleave.runtime.request import SamplingParams
from cleave.runtime.sampling_params import MAX_LOGPROBS, MAX_STOP_STRINGS
from cleave.runtime.server.errors import Refused
from cleave.runtime.server.tgi.schemas import GenerateParameters, GenerateRequest, Grammar
from cleave.runtime.structured.params import StructuredOutput

MAX_BEST_OF = 16
MAX_STOP_SEQUENCES = MAX_STOP_STRINGS
MAX_TOP_N_TOKENS = MAX_LOGPROBS
_SEEDS = 2**63


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a request asks for."""

    sampling: SamplingParams
    seed: int | None
    """None where nothing is drawn."""
    details: bool
    top_n_tokens: int
    prefill: bool
    """Whether the details of the prompt are wanted."""
    full_text: bool
    max_new_tokens: int | None
    """None: what there is room for."""
    is_default: bool
    """Whether nobody asked for just so many."""
    truncate: int | None


def wanted(body: GenerateRequest, *, streams: bool, full_text: bool = False) -> Wanted:
    """What a request asks for; `full_text` is what is done where it does not say.

    Raises Refused or RequestError.
    """
    given = body.parameters or GenerateParameters()
    _check(given, streams=streams)
    _check_unsupported(given, body)
    if not body.inputs:
        raise _invalid("`inputs` cannot be empty")
    draws = bool(given.do_sample) or any(
        value is not None for value in (given.temperature, given.top_k, given.top_p)
    )
    seed = None
    if draws:
        seed = secrets.randbelow(_SEEDS) if given.seed is None else given.seed
    best_of = given.best_of or 1
    top = given.top_n_tokens or 0
    prefill = bool(given.decoder_input_details)
    details = bool(given.details) or prefill
    sampling = SamplingParams(
        temperature=(given.temperature or 1.0) if draws else 0.0,
        top_k=given.top_k or 0,
        top_p=1.0 if given.top_p is None else given.top_p,
        min_p=0.0,
        repetition_penalty=1.0 if given.repetition_penalty is None else given.repetition_penalty,
        frequency_penalty=given.frequency_penalty or 0.0,
        seed=seed,
        max_tokens=given.max_new_tokens,
        stop=given.stop,
        include_stop_str_in_output=True,
        logprobs=top if streams or details or best_of > 1 else None,
        prompt_logprobs=0 if prefill else None,
        n=best_of,
        structured=None if given.grammar is None else _structured(given.grammar),
    )
    return Wanted(
        sampling=sampling,
        seed=seed,
        details=details,
        top_n_tokens=top,
        prefill=prefill,
        full_text=full_text if given.return_full_text is None else given.return_full_text,
        max_new_tokens=given.max_new_tokens,
        is_default="max_new_tokens" not in given.model_fields_set,
        truncate=given.truncate,
    )


def _check(given: GenerateParameters, *, streams: bool) -> None:
    best_of = given.best_of
    draws = bool(given.do_sample) or any(
        value is not None for value in (given.temperature, given.top_k, given.top_p, given.typical_p)
    )
    if best_of is not None:
        if not 0 < best_of <= MAX_BEST_OF:
            raise _invalid(f"`best_of` must be > 0 and <= {MAX_BEST_OF}. Given: {best_of}")
        if best_of > 1 and not draws:
            raise _invalid("you must use sampling when `best_of` is > 1")
        if best_of > 1 and given.seed is not None:
            raise _invalid("`seed` must not be set when `best_of` > 1")
        if best_of > 1 and streams:
            raise _invalid("`best_of` != 1 is not supported when streaming tokens")
    if given.top_n_tokens is not None and not 0 <= given.top_n_tokens <= MAX_TOP_N_TOKENS:
        raise _invalid(f"`top_n_tokens` must be >= 0 and <= {MAX_TOP_N_TOKENS}. Given: {given.top_n_tokens}")
    if given.decoder_input_details and streams:
        raise _invalid("`decoder_input_details` == true is not supported when streaming tokens")
    if given.temperature is not None and not given.temperature > 0:
        raise _invalid("`temperature` must be strictly positive")
    if given.repetition_penalty is not None and not given.repetition_penalty > 0:
        raise _invalid("`repetition_penalty` must be strictly positive")
    if given.frequency_penalty is not None and not -2 <= given.frequency_penalty <= 2:
        raise _invalid("`frequency_penalty` must be >= -2.0 and <= 2.0")
    if given.top_p is not None and not 0 < given.top_p <= 1:
        raise _invalid("`top_p` must be > 0.0 and <= 1.0")
    if given.top_k is not None and given.top_k <= 0:
        raise _invalid("`top_k` must be strictly positive")
    if given.typical_p is not None and not 0 < given.typical_p < 1:
        raise _invalid("`typical_p` must be > 0.0 and < 1.0")
    if given.max_new_tokens is not None and given.max_new_tokens <= 0:
        raise _invalid("`max_new_tokens` must be strictly positive")
    if given.stop is not None and len(given.stop) > MAX_STOP_SEQUENCES:
        raise _invalid(f"`stop` supports up to {MAX_STOP_SEQUENCES} stop sequences. Given: {len(given.stop)}")


def _check_unsupported(given: GenerateParameters, body: GenerateRequest) -> None:
    if given.watermark:
        raise _invalid("`watermark` is not supported; leave it out")
    if given.typical_p is not None:
        raise _invalid("`typical_p` is not supported; use `top_p`")
    adapter = given.lora_id or given.adapter_id or body.lora_id
    if adapter is not None:
        raise _invalid(f"LoRA adaptor {adapter} not loaded")


def _structured(grammar: Grammar) -> StructuredOutput:
    if grammar.type == "regex":
        if not isinstance(grammar.value, str):
            raise _invalid("grammar is not valid: the value of a regex must be text")
        return StructuredOutput(regex=grammar.value)
    return StructuredOutput(json_schema=grammar.value)


def _invalid(message: str) -> Refused:
    return Refused("validation", message)
