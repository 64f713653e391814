"""What a script cannot do without: the end is one sentence, and exit code 2."""

from __future__ import annotations

import importlib.metadata
import sys


def require(package: str, pin: str) -> None:
    """End where the peer is not installed."""
    try:
        importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        sys.stderr.write(f"error: {package} is not installed; the one that was compared: pip install {pin}\n")
        sys.exit(2)


def require_gpu() -> None:
    """End where torch has no NVIDIA GPU."""
    import torch

    if not torch.cuda.is_available():
        sys.stderr.write("error: torch sees no GPU; this measures on a GPU only\n")
        sys.exit(2)
