"""Cleave beside vLLM, same checkpoint, bfloat16. Needs an NVIDIA GPU, and `--engine` with a kind for it."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from side_by_side import Prompts, main, parser, require

PIN = "vllm==0.20.2"
_MEMORY_SHARE = 0.45
"""Both sides are loaded at once."""


class Vllm:
    """See `side_by_side.Contender`."""

    item_bytes = 2

    def __init__(self, checkpoint: Path, folder: Path, arguments: argparse.Namespace, batch: int) -> None:
        import vllm

        self.name = f"vllm {vllm.__version__}"
        self._params = vllm.SamplingParams
        self._llm = vllm.LLM(
            str(checkpoint),
            dtype="bfloat16",
            skip_tokenizer_init=True,
            gpu_memory_utilization=_MEMORY_SHARE,
            max_model_len=arguments.prompt + arguments.output + 1,
            max_num_seqs=batch,
            enable_prefix_caching=False,
            disable_log_stats=True,
        )

    def generate(self, prompts: Prompts, tokens: int) -> Prompts:
        """See `Contender`."""
        params = self._params(temperature=0, max_tokens=tokens, ignore_eos=True, detokenize=False)
        given = [{"prompt_token_ids": prompt} for prompt in prompts]
        answers = self._llm.generate(given, params, use_tqdm=False)
        return [list(answer.outputs[0].token_ids) for answer in answers]

    def close(self) -> None:
        """See `Contender`."""
        del self._llm


if __name__ == "__main__":
    given = parser(__doc__).parse_args()
    require("vllm", PIN)
    import torch

    if not torch.cuda.is_available():
        sys.stderr.write("error: torch sees no GPU; vLLM is compared on a GPU only\n")
        sys.exit(2)
    main("vllm", Vllm, given)
