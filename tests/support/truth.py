"""What transformers says, and how tokens are compared with it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

NEAR_TIE = 1e-5
"""Where transformers' own two best logits are closer than this, either token is right."""


@dataclass
class Truth:
    """A checkpoint in transformers, float32, eager attention."""

    model: torch.nn.Module

    @classmethod
    def load(cls, checkpoint: Path) -> Truth:
        """Load as float32 whatever the checkpoint's dtype."""
        return cls(
            AutoModelForCausalLM.from_pretrained(
                checkpoint, dtype=torch.float32, attn_implementation="eager"
            ).eval()
        )

    def logits(self, tokens: list[int]) -> torch.Tensor:
        """[tokens, vocab] of one sequence."""
        with torch.no_grad():
            return self.model(torch.tensor([tokens])).logits[0]

    def greedy(self, prompt: list[int], max_new_tokens: int, *, ignore_eos: bool = False) -> list[int]:
        """What `generate(do_sample=False)` appends to a prompt."""
        options = {"eos_token_id": None} if ignore_eos else {}
        with torch.no_grad():
            tokens = self.model.generate(
                torch.tensor([prompt]),
                attention_mask=torch.ones(1, len(prompt), dtype=torch.int64),
                do_sample=False,
                max_new_tokens=max_new_tokens,
                pad_token_id=0,
                **options,
            )
        return tokens[0, len(prompt) :].tolist()

    def excused(self, prompt: list[int], expected: list[int], got: list[int]) -> bool:
        """Whether the first token that differs was a near tie in transformers' own logits."""
        place = next(
            (index for index, pair in enumerate(zip(expected, got, strict=False)) if pair[0] != pair[1]),
            None,
        )
        if place is None:
            return False
        best = self.logits([*prompt, *expected[:place]])[-1].topk(2).values
        return bool(best[0] - best[1] < NEAR_TIE)


def assert_token_exact(truth: Truth, prompts: list[list[int]], got: list[list[int]], **options: int) -> int:
    """Compare greedy answers; gives back how many divergences were near ties."""
    excused = 0
    for prompt, answer in zip(prompts, got, strict=True):
        expected = truth.greedy(prompt, **options)
        if answer != expected:
            assert truth.excused(prompt, expected, answer), f"{prompt}: {answer} instead of {expected}"
            excused += 1
    return excused
