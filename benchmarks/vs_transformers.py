"""Cleave beside transformers' own `generate`, scaled-dot-product attention, in its dtypes for CPUs."""

from __future__ import annotations

import argparse
from typing import Any

import torch
from contenders import Prompts, Weights
from side_by_side import main, parser
from transformers import AutoModelForCausalLM
from workshop import Workshop

WEIGHTS = {"float32": Weights("float32", 4, "float32"), "bfloat16": Weights("bfloat16", 2, None)}


class Transformers:
    """See `contenders.Contender`."""

    program = "transformers"
    note = ""

    def __init__(self, weights: str, files: Workshop, arguments: argparse.Namespace, batch: int) -> None:
        torch.set_num_threads(arguments.threads)
        self.weights = WEIGHTS[weights]
        self._model: Any = AutoModelForCausalLM.from_pretrained(
            files.checkpoint(), dtype=getattr(torch, weights), attn_implementation="sdpa"
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
    given = parser(__doc__, peer="float32,bfloat16", ours="float32,int8").parse_args()
    main("transformers", Transformers, tuple(WEIGHTS), given)
