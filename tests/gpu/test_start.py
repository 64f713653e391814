"""A second start of the GPU engine, in a home folder of its own, compiles nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]
START = """
import json, sys
import psutil, triton
from cleave import LLM, SamplingParams
compiled = []
def listen(*, src, cache_hit, **told):
    if not cache_hit:
        compiled.append(src.name)
triton.knobs.compilation.listener = listen
with LLM(sys.argv[1], "inductor", max_sequences=8, cache=sys.argv[2]) as llm:
    greedy = llm.generate(["Once upon a time"], SamplingParams(temperature=0, max_tokens=16))
    params = SamplingParams(temperature=1, top_p=0.9, seed=1, max_tokens=16)
    drawn = llm.generate(["Once upon a time"], params)
    answers = [list(answer.token_ids) for answer in (*greedy, *drawn)]
    compilations = llm.model.engine.compilations
    children = [" ".join(child.cmdline()) for child in psutil.Process().children()]
    workers = [line for line in children if "compile_worker" in line]
print(json.dumps([compiled, compilations, answers, workers]))
"""


def start(artifact: Path, cache: Path, home: Path) -> Any:
    """Kernels and functions compiled, answers, and Inductor's compile workers, of a process in a new home."""
    home.mkdir()
    environment = {name: value for name, value in os.environ.items() if not name.startswith("TRITON_")}
    environment |= {"HOME": str(home), "TORCHINDUCTOR_CACHE_DIR": str(home / "inductor")}
    command = [sys.executable, "-c", START, str(artifact), str(cache)]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def test_a_start_in_a_new_home_compiles_nothing(demo_artifact: Path, tmp_path: Path) -> None:
    first, _, answers, _ = start(demo_artifact, tmp_path / "engines", tmp_path / "first")
    assert {"matrix_kernel", "vector_kernel", "decode_kernel", "draw_kernel"} <= set(first)
    assert start(demo_artifact, tmp_path / "engines", tmp_path / "second") == [[], 0, answers, []]
