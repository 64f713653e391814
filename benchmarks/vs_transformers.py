"""Cleave beside transformers' own `generate`, float32, scaled-dot-product attention."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from side_by_side import Prompts, main, parser
from transformers import AutoModelForCausalLM


class Transformers:
    """See `side_by_side.Contender`."""

    item_bytes = 4

    def __init__(self, checkpoint: Path, folder: Path, arguments: argparse.Namespace, batch: int) -> None:
        torch.set_num_threads(arguments.threads)
        self.name = "transformers"
        self._model = AutoModelForCausalLM.from_pretrained(
            checkpoint, dtype=torch.float32, attn_implementation="sdpa"
        ).eval()
        self._model.generation_config.eos_token_id = None

    def generate(self, prompts: Prompts, tokens: int) -> Prompts:
        """See `Contender`."""
        given = torch.tensor(prompts)
        with torch.inference_mode():
            answers = self._model.generate(
                given,
                attention_mask=torch.ones_like(given),
                do_sample=False,
                max_new_tokens=tokens,
                pad_token_id=0,
            )
        return answers[:, given.shape[1] :].tolist()

    def close(self) -> None:
        """See `Contender`."""
        del self._model


if __name__ == "__main__":
    main("transformers", Transformers, parser(__doc__).parse_args())
