"""The prompt of a request: tokenised, cut where that is asked for, and measured."""

from __future__ import annotations

from cleave.runtime.model import Model
from cleave.runtime.server.errors import Refused
from cleave.runtime.server.tgi.parameters import Wanted


def prompt_tokens(model: Model, inputs: str, asked: Wanted) -> tuple[int, ...]:
    """The tokens of `inputs`. Raises Refused where they and the answer do not fit the context."""
    longest = model.max_length - 1
    truncate = asked.truncate
    if truncate is not None and not 0 < truncate <= longest:
        raise Refused(
            "validation",
            f"`truncate` must be strictly positive and less than {longest}. Given: {truncate}",
        )
    tokens = model.tokenizer.encode(inputs)
    if truncate is not None:
        # The end of a prompt is what the answer hangs on.
        tokens = tokens[-truncate:]
    if len(tokens) > longest:
        raise Refused("validation", f"`inputs` must have less than {longest} tokens. Given: {len(tokens)}")
    most = asked.max_new_tokens
    if most is not None and not asked.is_default and len(tokens) + most > model.max_length:
        raise Refused(
            "validation",
            f"`inputs` tokens + `max_new_tokens` must be <= {model.max_length}. Given: {len(tokens)} "
            f"`inputs` tokens and {most} `max_new_tokens`",
        )
    return tokens
