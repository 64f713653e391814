"""The build of the native plugin says what to set where the headers are missing."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from command import REPOSITORY

pytestmark = pytest.mark.skipif(
    not (shutil.which("cmake") and shutil.which("c++")), reason="needs cmake and a C++ compiler"
)


@pytest.mark.parametrize("given", [None, "/nowhere"])
def test_missing_headers_are_told_of(given: str | None, tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "TENSORRT_ROOT"}
    option = [f"-DTENSORRT_ROOT={given}"] if given else []
    ended = subprocess.run(
        ["cmake", "-S", REPOSITORY, "-B", tmp_path, *option], env=environment, capture_output=True, text=True
    )
    if "Configuring done" in ended.stdout:
        pytest.skip("the headers of TensorRT are where the compiler finds them anyway")
    assert ended.returncode != 0
    told = " ".join(ended.stderr.split())
    assert f"NvInferRuntime.h was not found (TENSORRT_ROOT is '{given or ''}')" in told
    assert "cmake -B build -DTENSORRT_ROOT=/opt/tensorrt" in told
