"""Whether there is a device sampler."""

from __future__ import annotations

import importlib.util

from cleave.errors import EngineError
from cleave.runtime.sampling.device.interface import TokenSampler


def create_device_sampler(vocab: int, device: str, max_sequences: int) -> TokenSampler | None:
    """A sampler for logits on `device`, ready to run; None where that is no GPU, or Triton is not installed.

    Raises EngineError where the device has no room for it.
    """
    if not device.startswith("cuda") or importlib.util.find_spec("triton") is None:
        return None
    # Here, since it brings in torch, which serving on a CPU does without.
    import torch

    from cleave.runtime.sampling.device.sampler import DeviceSampler

    try:
        sampler = DeviceSampler(vocab, device, max_sequences)
        sampler.warm_up()
    except torch.OutOfMemoryError:
        raise EngineError(
            f"{device} has no room for the sampling of {max_sequences} sequences over {vocab} tokens; "
            "lower max_sequences"
        ) from None
    return sampler
