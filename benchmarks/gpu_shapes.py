"""Shapes of real models that are timed on a GPU, with random weights."""

from __future__ import annotations

from typing import Any

GPU_SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama-2-7b": (
        "float16",
        {
            "hidden_size": 4096,
            "intermediate_size": 11008,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "num_key_value_heads": 32,
            "vocab_size": 32000,
            "max_position_embeddings": 4096,
        },
    ),
    "llama-3-8b": (
        "bfloat16",
        {
            "hidden_size": 4096,
            "intermediate_size": 14336,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "vocab_size": 128256,
            "max_position_embeddings": 8192,
            "rope_parameters": {"rope_type": "default", "rope_theta": 500000.0},
        },
    ),
}
"""Shape -> dtype and config."""

ENGINES = "engines"
"""Folder of an engine cache that is kept, in that of the artifact."""
