"""How the scripts for GPUs end where they cannot begin: one sentence, and exit code 2."""

from __future__ import annotations

import sys
from typing import NoReturn


def refuse(why: str) -> NoReturn:
    """End with it."""
    sys.stderr.write(f"error: {why}\n")
    sys.exit(2)


def require_gpu() -> None:
    """Refuse where torch has no NVIDIA GPU."""
    import torch

    if torch.version.cuda is None:
        refuse(f"torch {torch.__version__} was built without CUDA; install a CUDA build of torch")
    if not torch.cuda.is_available():
        refuse(
            f"torch {torch.__version__} sees no NVIDIA GPU; look at what nvidia-smi says, and at "
            "CUDA_VISIBLE_DEVICES"
        )
