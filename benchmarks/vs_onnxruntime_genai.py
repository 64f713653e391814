"""Cleave beside onnxruntime-genai, on the model that its own builder makes of the same checkpoint.

It has no way to ignore the end-of-sequence token but to forbid it, so where that would be the likeliest its
tokens differ.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
from side_by_side import Prompts, main, parser, require

PIN = "onnxruntime-genai==0.18.0"


class OnnxRuntimeGenAI:
    """See `side_by_side.Contender`."""

    item_bytes = 4

    def __init__(self, checkpoint: Path, folder: Path, arguments: argparse.Namespace, batch: int) -> None:
        import onnxruntime_genai

        self.name = "onnxruntime-genai fp32"
        self._api: Any = onnxruntime_genai
        built = folder / "genai"
        builder = [sys.executable, "-m", "onnxruntime_genai.models.builder"]
        options = ["-i", checkpoint, "-o", built, "-p", "fp32", "-e", "cpu", "-c", folder / "cache"]
        subprocess.run([*builder, *map(str, options)], check=True, capture_output=True)
        config = onnxruntime_genai.Config(str(built))
        session = {"intra_op_num_threads": arguments.threads}
        config.overlay(json.dumps({"model": {"decoder": {"session_options": session}}}))
        self._model = onnxruntime_genai.Model(config)

    def generate(self, prompts: Prompts, tokens: int) -> Prompts:
        """See `Contender`."""
        length = len(prompts[0])
        params = self._api.GeneratorParams(self._model)
        params.set_search_options(
            do_sample=False,
            batch_size=len(prompts),
            min_length=length + tokens,
            max_length=length + tokens,
        )
        generator = self._api.Generator(self._model, params)
        generator.append_tokens(np.array(prompts, np.int32))
        for _ in range(tokens):
            generator.generate_next_token()
        return [[int(token) for token in generator.get_sequence(row)[length:]] for row in range(len(prompts))]

    def close(self) -> None:
        """See `Contender`."""
        del self._model


if __name__ == "__main__":
    given = parser(__doc__).parse_args()
    require("onnxruntime-genai", PIN)
    main("onnxruntime_genai", OnnxRuntimeGenAI, given)
