"""The ways of sampling that both samplers are measured with."""

from __future__ import annotations

from typing import Any

HISTORY = 512
"""Tokens of prompt and answer that penalties look at, half of them generated."""
KINDS: dict[str, dict[str, Any]] = {
    "temperature": {"temperature": 0.8},
    "top-k 50": {"temperature": 0.8, "top_k": 50},
    "top-p 0.9": {"temperature": 0.8, "top_p": 0.9},
    "top-p 0.9, flat": {"temperature": 1.0, "top_p": 0.9},
    "top-k 50, top-p 0.9, min-p 0.05": {"temperature": 0.8, "top_k": 50, "top_p": 0.9, "min_p": 0.05},
    "penalties": {"temperature": 0.8, "repetition_penalty": 1.1, "frequency_penalty": 0.2},
}
