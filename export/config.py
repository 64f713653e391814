"""The transformers config of a checkpoint, cut down to the layers that are wanted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import AutoConfig

from cleave.errors import CheckpointError, reason


def load_config(folder: Path, num_layers: int | None = None) -> Any:
    """The config as transformers reads it; code that lies in the checkpoint is never run.

    Raises CheckpointError where transformers cannot read it.
    """
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # its validators raise whatever they come upon
        raise CheckpointError(f"transformers cannot read {folder / 'config.json'}: {reason(error)}") from None
    if hasattr(config, "quantization_config"):
        # The layers of the model are plain ones; what is packed is unpacked before they see it.
        del config.quantization_config
    if num_layers is not None:
        config.num_hidden_layers = num_layers
        if getattr(config, "layer_types", None):
            config.layer_types = config.layer_types[:num_layers]
    return config
