"""Cleave beside onnxruntime-genai, on the models that its own builder makes of the same checkpoint.

It has no way to ignore the end-of-sequence token but to forbid it, so where that would be the likeliest its
tokens differ. Its int4 is `MatMulNBits` with blocks of 32 at accuracy level 4, the builder's default.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
from contenders import Prompts, Weights
from needs import require
from side_by_side import main, parser
from workshop import Workshop

PIN = "onnxruntime-genai==0.18.0"
WEIGHTS = {"fp32": Weights("fp32", 4, "float32"), "int4": Weights("int4", 0.5 + 4 / 32, "int8")}


class OnnxRuntimeGenAI:
    """See `contenders.Contender`."""

    program = "onnxruntime-genai"
    note = ""

    def __init__(self, weights: str, files: Workshop, arguments: argparse.Namespace, batch: int) -> None:
        import onnxruntime_genai

        self.weights = WEIGHTS[weights]
        self._api: Any = onnxruntime_genai
        built = files.kept(f"genai-{weights}", lambda folder: _build(files.checkpoint(), weights, folder))
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


def _build(checkpoint: Path, weights: str, folder: Path) -> None:
    builder = [sys.executable, "-m", "onnxruntime_genai.models.builder"]
    place = folder.parent.resolve()
    options = ["-i", checkpoint.resolve(), "-o", place / folder.name, "-p", weights, "-e", "cpu"]
    options += ["-c", place / "cache"]
    # From there, since the builder has modules whose names scripts of this folder have too.
    done = subprocess.run([*builder, *map(str, options)], cwd=place, capture_output=True, text=True)
    if done.returncode:
        raise ValueError(f"the builder of onnxruntime-genai failed: {done.stderr.strip().splitlines()[-1]}")


if __name__ == "__main__":
    options = parser(__doc__, peer="fp32,int4", ours="float32,int8,int4")
    given = options.parse_args()
    require("onnxruntime-genai", PIN)
    main("onnxruntime_genai", OnnxRuntimeGenAI, tuple(WEIGHTS), given)
