"""The rotary encoding that a Hugging Face config asks for, in 4.x and 5.x form."""

from __future__ import annotations

import math
from typing import Any

from cleave.errors import CheckpointError
from cleave.plugins.spec import ROPE_KINDS, RopeSpec


def rope_of(config: Any, head_dim: int) -> RopeSpec:
    """The RopeSpec of a transformers config.

    transformers 5 keeps everything in `rope_parameters`; 4.x had `rope_theta` beside `rope_scaling`.
    Raises CheckpointError for a kind that the attention server does not compute.
    """
    parameters = dict(getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {})
    kind = parameters.get("rope_type", parameters.get("type", "default"))
    if kind not in ROPE_KINDS:
        raise CheckpointError(f"rope type {kind!r} is not supported; supported: {', '.join(ROPE_KINDS)}")
    base = parameters.get("rope_theta", getattr(config, "rope_theta", None))
    if base is None:
        raise CheckpointError("the config names no rope_theta")
    partial = parameters.get("partial_rotary_factor", getattr(config, "partial_rotary_factor", None))
    fields: dict[str, Any] = {
        "kind": kind,
        "base": float(base),
        "rotary_dim": int(head_dim * (1.0 if partial is None else partial)),
    }
    if kind == "default":
        return RopeSpec(**fields)
    context = int(config.max_position_embeddings)
    original = parameters.get("original_max_position_embeddings")
    factor = parameters.get("factor")
    if kind == "yarn" and factor is None and original:
        factor = context / original
    if factor is None:
        raise CheckpointError(f"rope type {kind!r} needs a factor, and the config has none")
    fields["factor"] = float(factor)
    if kind == "llama3":
        fields["low_freq_factor"] = float(parameters["low_freq_factor"])
        fields["high_freq_factor"] = float(parameters["high_freq_factor"])
        fields["original_max_position"] = int(original or context)
    if kind == "yarn":
        fields["beta_fast"] = float(parameters.get("beta_fast") or 32)
        fields["beta_slow"] = float(parameters.get("beta_slow") or 1)
        fields["truncate"] = bool(parameters.get("truncate", True))
        fields["original_max_position"] = int(original or context)
        fields["attention_factor"] = _yarn_attention_factor(parameters, float(factor))
    return RopeSpec(**fields)


def _yarn_attention_factor(parameters: dict[str, Any], factor: float) -> float:
    """The factor on cos and sin (Peng et al. 2023, eq. 22), with DeepSeek's `mscale` where given."""

    def grown(scale: float, by: float = 1.0) -> float:
        return 1.0 if scale <= 1 else 0.1 * by * math.log(scale) + 1.0

    given = parameters.get("attention_factor")
    if given is not None:
        return float(given)
    mscale, mscale_all_dim = parameters.get("mscale"), parameters.get("mscale_all_dim")
    if mscale and mscale_all_dim:
        return grown(factor, float(mscale)) / grown(factor, float(mscale_all_dim))
    return grown(factor)
