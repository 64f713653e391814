"""Kernels that are compiled beforehand, side by side, and kept: by Triton's own compiler, for a GPU that is
not there. Each start is a process of its own, because others here run Triton's interpreter.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

from cleave.export.artifact import Artifact
from cleave.runtime.engine_cache.cache import EngineCache
from cleave.runtime.kept_kernels import kept_kernels

SUPPORT = Path(__file__).parent.parent / "support"
START = """
import json, sys
sys.path.insert(0, sys.argv[1])
from triton_compiler import pretend_hopper
seen = pretend_hopper()
import torch
import cleave.runtime.kept_kernels as module
from cleave.export.artifact import Artifact
from cleave.runtime.engine_cache.cache import EngineCache
from cleave.runtime.engines.inductor.small_launch import norm
module.cuda_is_usable = lambda: True
artifact = Artifact.open(sys.argv[2], verify=False)
with module.kept_kernels(artifact, "inductor", None, EngineCache(sys.argv[3])):
    for width in map(int, sys.argv[4].split()):
        x = torch.empty(4, width, dtype=torch.bfloat16, device="meta")
        norm(x, x[0], 1e-5)
print(json.dumps([seen.compiled["norm_kernel"], seen.found["norm_kernel"]]))
"""
TOGETHER = """
import contextlib, json, sys
sys.path.insert(0, sys.argv[1])
from triton_compiler import pretend_hopper
pretend_hopper()
import torch
from triton import knobs
import cleave.runtime.kept_kernels as module
from cleave.runtime.engines.inductor.small_launch import norm

def compiled(width):
    x = torch.empty(4, width, dtype=torch.bfloat16, device="meta")
    norm(x, x[0], 1e-5)

first, second = contextlib.ExitStack(), contextlib.ExitStack()
of_first = first.enter_context(module._used())
of_second = second.enter_context(module._used())
compiled(256)
first.close()
compiled(512)
second.close()
print(json.dumps([len(of_first), len(of_second)]))
"""
CANDIDATES = """
import json, sys
sys.path.insert(0, sys.argv[1])
from triton_compiler import pretend_hopper
seen = pretend_hopper()
import torch
from cleave.runtime.engines.inductor.choose import Chooser, Linear
from cleave.runtime.triton_launch import compiled_side_by_side
chooser = Chooser(torch.bfloat16, torch.device("cuda"))
with compiled_side_by_side():
    chooser.compile(Linear(**layer) for layer in json.loads(sys.argv[2]))
print(json.dumps(seen.compiled))
"""
SAMPLER = """
import json, sys
sys.path.insert(0, sys.argv[1])
from triton_compiler import pretend_hopper
seen = pretend_hopper()
import torch
from cleave.runtime.sampling.device.sampler import launch_all
from cleave.runtime.triton_launch import compiled_side_by_side
with compiled_side_by_side():
    launch_all(1000, torch.device("meta"))
print(json.dumps(seen.compiled))
"""


def run(code: str, home: Path, *arguments: object) -> Any:
    """What a process says at last that compiles for real, with a home folder of its own."""
    home.mkdir(exist_ok=True)
    kept = {name: value for name, value in os.environ.items() if not name.startswith("TRITON_")}
    command = [sys.executable, "-c", code, str(SUPPORT), *map(str, arguments)]
    done = subprocess.run(
        command, env=kept | {"HOME": str(home)}, stdout=subprocess.PIPE, text=True, check=True
    )
    return json.loads(done.stdout.splitlines()[-1])


def test_a_start_in_a_new_home_compiles_nothing(demo_artifact: Path, tmp_path: Path) -> None:
    """Widths stand for models' options: other kernels."""
    cache = EngineCache(tmp_path / "engines")

    def start(home: str, widths: str) -> list[int]:
        return list(run(START, tmp_path / home, demo_artifact, cache.directory, widths))

    assert start("first", "256") == [1, 0]
    (entry,) = cache.entries()
    assert entry.key.kind == "kernels"
    assert start("second", "512") == [1, 0]
    (other,) = cache.entries()
    assert start("third", "256 512") == [0, 2]  # the second start lost nothing of the first
    (entry,) = cache.entries()
    assert entry.built == other.built  # and the third one wrote nothing

    archive = entry.folder / "kernels.zip"
    with zipfile.ZipFile(archive) as opened:
        assert {Path(name).suffix for name in opened.namelist()} == {".json", ".cubin"}
    archive.write_bytes(b"x" * archive.stat().st_size)
    assert start("fourth", "256") == [1, 0]
    assert zipfile.is_zipfile(cache.entries()[0].folder / "kernels.zip")


@pytest.mark.parametrize(("kind", "device"), [("onnxruntime", None), ("inductor", "cpu"), ("inductor", None)])
def test_without_a_gpu_nothing_is_kept(
    demo_artifact: Path, tmp_path: Path, kind: str, device: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    cache = EngineCache(tmp_path)
    with kept_kernels(Artifact.open(demo_artifact, verify=False), kind, device, cache):
        pass
    assert cache.entries() == []


def layers(rows: int) -> list[dict[str, Any]]:
    """A Llama's, as `fuse_small_linears` asks for them."""
    is_one = rows == 1
    return [
        {"rows": rows, "height": 6144, "width": 4096, "norm": is_one},
        {"rows": rows, "height": 4096, "width": 4096, "residual": True, "norm_after": not is_one},
        {"rows": rows, "height": 28672, "width": 4096, "norm": is_one, "swiglu": True},
        {"rows": rows, "height": 4096, "width": 14336, "residual": True, "norm_after": not is_one},
    ]


@pytest.mark.slow
def test_numbers_of_rows_share_their_kernels(tmp_path: Path) -> None:
    few = [layer for rows in (2, 4, 8, 16) for layer in layers(rows)]
    compiled = run(CANDIDATES, tmp_path, json.dumps(few))
    assert compiled["matrix_kernel"] == 4 + 4 + 3  # q, k and v; gate and up; o and down share theirs
    assert compiled["add_norm_kernel"] == 3  # of the library's product, of three splits and of six
    assert "vector_kernel" not in compiled
    more = run(CANDIDATES, tmp_path, json.dumps(few + layers(1)))
    # All others were compiled before. Of q, k and v, of gate and up, and of o; down is too wide to be held.
    assert more == {"vector_kernel": 3 * 5, "rows_kernel": 5 + 3 + 5}


def test_models_that_load_at_the_same_time_each_hear_of_their_kernels(tmp_path: Path) -> None:
    """One begins while another does, and goes on when that has ended, with one kernel more."""
    assert run(TOGETHER, tmp_path) == [1, 2]


def test_the_kernels_of_the_sampler_are_compiled_without_data(tmp_path: Path) -> None:
    compiled = run(SAMPLER, tmp_path)
    assert compiled.pop("bounds_kernel") == 2
    assert set(compiled.values()) == {1}
    assert len(compiled) == 10
