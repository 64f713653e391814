"""Looks at the machine. Nothing here raises: what cannot be found out is said so."""

from __future__ import annotations

import ctypes
import importlib
import importlib.metadata
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil

from cleave.errors import CleaveError, reason
from cleave.runtime.doctor.facts import Cache, Facts, Gpu, Package
from cleave.runtime.engine_cache.directory import cache_directory
from cleave.runtime.engines.engine import best_engine_kind
from cleave.runtime.engines.huge_pages import huge_page_size
from cleave.runtime.engines.processor import arithmetic

IMPORTED = {
    "numba": "numba",
    "onnxruntime": "onnxruntime",
    "torch": "torch",
    "triton": "triton",
    "tensorrt": "tensorrt",
    "cuda-bindings": "cuda.bindings.runtime",
}
"""Packages that may be installed and still not load -> the module that shows it."""
LISTED = (
    *("numpy", "numba", "onnx", "onnxruntime", "torch", "triton", "transformers", "tokenizers"),
    *("tensorrt", "tensorrt-rtx-cu13-bindings", "tensorrt-rtx-cu13-libs", "cuda-bindings", "polygraphy"),
    *("flashinfer-python", "omniback", "llguidance"),
)
VARIABLES = (
    *("CUDA_VISIBLE_DEVICES", "CLEAVE_CACHE", "CLEAVE_CACHE_MAX_BYTES", "LD_LIBRARY_PATH", "CUDA_HOME"),
    *("TRITON_INTERPRET", "OMP_NUM_THREADS"),
)
_QUERY = "name,compute_cap,memory.total,driver_version"
_SECONDS = 20


def probe() -> Facts:
    """What this machine has."""
    packages = {name: _package(name) for name in LISTED}
    torch_cuda, torch_sees_gpu = _torch(packages["torch"])
    driver, gpus, driver_error = _driver()
    rtx_name = "tensorrt-rtx-cu13-bindings"
    packages[rtx_name], rtx_capabilities = _rtx(packages[rtx_name])
    return Facts(
        cleave=_version("cleave") or "not installed, used from its folder",
        python=f"{platform.python_version()} ({sys.executable})",
        system=f"{platform.platform()}, {' '.join(platform.libc_ver())}".rstrip(", "),
        cpu=_cpu(),
        cores=psutil.cpu_count(logical=False) or os.cpu_count() or 1,
        memory=psutil.virtual_memory().total,
        packages=packages,
        missing=_extras(),
        cache=_cache(),
        best_engine=best_engine_kind(),
        arithmetic=arithmetic(),
        huge_pages=bool(huge_page_size()),
        driver=driver,
        driver_error=driver_error,
        cuda=_driver_cuda(),
        torch_cuda=torch_cuda,
        torch_sees_gpu=torch_sees_gpu,
        gpus=gpus,
        rtx_capabilities=rtx_capabilities,
        environment={name: os.environ[name] for name in VARIABLES if name in os.environ},
    )


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _package(name: str) -> Package:
    version = _version(name)
    if version is None or name not in IMPORTED:
        return Package(version)
    try:
        importlib.import_module(IMPORTED[name])
    except Exception as error:
        return Package(version, reason(error))
    return Package(version)


def _torch(package: Package) -> tuple[str | None, bool]:
    """The CUDA that torch was built with, and whether it can use a GPU."""
    if not package.is_usable:
        return None, False
    torch = importlib.import_module("torch")
    return torch.version.cuda, bool(torch.cuda.is_available())


def _rtx(package: Package) -> tuple[Package, tuple[str, ...]]:
    """The package as it loads, and what it builds for."""
    if package.version is None:
        return package, ()
    from cleave.runtime.engines.tensorrt_rtx import architecture, library

    try:
        return package, tuple(architecture.supported(library.load()))
    except Exception as error:
        return Package(package.version, reason(error)), ()


def _driver() -> tuple[str | None, tuple[Gpu, ...], str | None]:
    """Version of the driver, its GPUs, and why there are none."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return None, (), "nvidia-smi is not there"
    command = [program, f"--query-gpu={_QUERY}", "--format=csv,noheader,nounits"]
    try:
        ended = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return None, (), f"nvidia-smi: {reason(error)}"
    if ended.returncode:
        return None, (), f"nvidia-smi: {reason(Exception(ended.stdout + ended.stderr))}"
    try:
        return parse_gpus(ended.stdout)
    except ValueError:
        return None, (), f"nvidia-smi says {reason(Exception(ended.stdout))}"


def parse_gpus(text: str) -> tuple[str | None, tuple[Gpu, ...], str | None]:
    """What nvidia-smi says, a line for each GPU. Raises ValueError for what is not that."""
    rows = [[cell.strip() for cell in line.split(",")] for line in text.splitlines() if line.strip()]
    if not rows:
        return None, (), "nvidia-smi lists no GPU"
    gpus = []
    for name, capability, memory, _ in rows:
        if not re.fullmatch(r"\d+\.\d+", capability):
            raise ValueError(capability)
        gpus.append(Gpu(name, capability, int(memory)))
    return rows[0][3], tuple(gpus), None


def _driver_cuda() -> str | None:
    """The newest CUDA that the driver runs, of the driver itself."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    version = ctypes.c_int()
    if driver.cuDriverGetVersion(ctypes.byref(version)) != 0:
        return None
    return f"{version.value // 1000}.{version.value % 1000 // 10}"


def _extras() -> dict[str, tuple[str, ...]]:
    """Extra of the installed Cleave -> what is not there of it."""
    try:
        lines = importlib.metadata.requires("cleave") or []
    except importlib.metadata.PackageNotFoundError:
        return {}
    missing: dict[str, tuple[str, ...]] = {}
    for line in lines:
        wanted = re.search(r"""extra\s*==\s*["'](\w+)["']""", line)
        name = re.match(r"[\w.-]+", line)
        if wanted is None or name is None or wanted[1] == "dev":
            continue
        absent = () if name[0] == "cleave" or _version(name[0]) else (name[0],)
        missing[wanted[1]] = missing.get(wanted[1], ()) + absent
    return missing


def _cache() -> Cache:
    try:
        folder = cache_directory()
    except CleaveError as error:
        return Cache("", False, 0, 0, str(error))
    entries = [path for path in folder.iterdir() if path.is_dir()] if folder.is_dir() else []
    size = sum(file.stat().st_size for entry in entries for file in entry.rglob("*") if file.is_file())
    return Cache(str(folder), _is_writable(folder), len(entries), size)


def _is_writable(folder: Path) -> bool:
    """Whether entries can be written: into the folder, or the nearest one above it that is there."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return os.access(folder, os.W_OK)


def _cpu() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text("utf-8")
    except OSError:
        return platform.processor() or platform.machine()
    fields: Mapping[str, Any] = dict(re.findall(r"^(model name|flags)\s*:\s*(.*)$", text, re.MULTILINE))
    flags = str(fields.get("flags", "")).split()
    known = [flag for flag in ("avx2", "avx512f", "avx512_vnni", "amx_bf16") if flag in flags]
    return f"{fields.get('model name', platform.machine())} ({', '.join(known) or 'no AVX2'})"
