"""What clients of text-generation-inference send."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict


class Strict(BaseModel):
    """Fields that are not known are refused by their name: none is ignored in silence."""

    model_config = ConfigDict(extra="forbid", strict=True)


class Grammar(Strict):
    """What text the answer has to be."""

    type: Literal["json", "regex", "json_schema"]
    value: dict[str, Any] | str


class GenerateParameters(Strict):
    """`parameters`; what text-generation-inference says of them goes here, too."""

    best_of: int | None = None
    temperature: float | None = None
    repetition_penalty: float | None = None
    frequency_penalty: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    typical_p: float | None = None
    do_sample: bool | None = None
    max_new_tokens: int | None = 100
    """None: as many as the context has room for."""
    return_full_text: bool | None = None
    stop: list[str] | None = None
    truncate: int | None = None
    watermark: bool | None = None
    details: bool | None = None
    decoder_input_details: bool | None = None
    seed: int | None = None
    top_n_tokens: int | None = None
    grammar: Grammar | None = None
    lora_id: str | None = None
    adapter_id: str | None = None


class GenerateRequest(Strict):
    """The body of POST /, /generate and /generate_stream."""

    inputs: str
    parameters: GenerateParameters | None = None
    stream: bool | None = None
    """For POST / alone."""
    lora_id: str | None = None


class TokenizeRequest(Strict):
    """The body of POST /tokenize."""

    inputs: str
    parameters: GenerateParameters | None = None
    add_special_tokens: bool | None = None
