"""FlashInfer's kernels for Hopper GPUs: where they run, and whether they are compiled."""

from __future__ import annotations

import shutil
from collections.abc import Sequence

import torch

from cleave.errors import reason
from cleave.kvcache.spec import AttentionSpec

HOPPER = "fa3"
"""FlashInfer's name of them."""
_NO_ROPE = 0
"""FlashInfer's number of positions that its kernels do not encode."""


def is_hopper(device: torch.device | str) -> bool:
    """Whether this is a GPU of compute capability 9.0, the only one that they are for."""
    return torch.device(device).type == "cuda" and torch.cuda.get_device_capability(device) == (9, 0)


def why_uncompiled(specs: Sequence[AttentionSpec], dtype: str) -> str | None:
    """Why what these layers need would have to be compiled now; None where it is there.

    It is asked of what FlashInfer compiles with, which another release may have otherwise: then nothing is
    known to be there.
    """
    half: torch.dtype = getattr(torch, dtype)
    kinds = {(spec.head_dim, spec.window is not None, spec.softcap is not None) for spec in specs}
    try:
        from flashinfer.jit import gen_batch_prefill_module
        from flashinfer.jit.page import gen_page_module

        modules = [gen_page_module()]
        for head_dim, window, softcap in sorted(kinds):
            kernel = (torch.int32, head_dim, head_dim, _NO_ROPE, window, softcap, False)
            modules.append(gen_batch_prefill_module(HOPPER, half, half, half, *kernel))
        missing = [module.name for module in modules if not module.is_compiled]
        needs_ninja = not all(module.is_aot for module in modules)
    except Exception as error:
        return f"whether its kernels are compiled cannot be found out ({reason(error)})"
    if missing:
        return f"{len(missing)} of its {len(modules)} kernels are not compiled"
    if needs_ninja and shutil.which("ninja") is None:  # it is asked whether what it compiled is still good
        return "ninja, which it loads its compiled kernels with, is not on the PATH"
    return None
