"""Checkpoints to measure: the bundled demo, or a shape with random weights.

python benchmarks/shapes.py 135m --output_dir benchmarks/out/135m/checkpoint
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

DEMO = Path(__file__).parent.parent / "model_files" / "demo"
SHAPES: dict[str, dict[str, Any]] = {
    "135m": {
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "vocab_size": 49152,
        "tie_word_embeddings": True,
        "max_position_embeddings": 4096,
    },
    "1b": {
        "hidden_size": 2048,
        "intermediate_size": 5632,
        "num_hidden_layers": 22,
        "num_attention_heads": 32,
        "num_key_value_heads": 4,
        "vocab_size": 32000,
        "max_position_embeddings": 4096,
    },
    "llama-2-7b": {
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "vocab_size": 32000,
        "max_position_embeddings": 4096,
    },
}
NAMES = ("demo", *SHAPES)


def checkpoint(name: str, folder: Path) -> Path:
    """The demo where it lies, or a random float32 checkpoint of a shape, written into `folder`.

    A shape gets the demo's tokenizer, which knows fewer tokens: prompts are token ids, and texts are
    looked at by nobody.
    """
    if name == "demo":
        return DEMO
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**SHAPES[name], bos_token_id=1, eos_token_id=2))
    model.save_pretrained(folder)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        (folder / file).write_bytes((DEMO / file).read_bytes())
    return folder


if __name__ == "__main__":
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    options.add_argument("shape", choices=tuple(SHAPES))
    options.add_argument("--output_dir", type=Path, required=True)
    given = options.parse_args()
    checkpoint(given.shape, given.output_dir)
