"""Plain transformers, to compare with."""

from __future__ import annotations

from cleave.errors import CheckpointError, ExportError
from cleave.export.checkpoint import Checkpoint


def continue_text(
    model: str, text: str, max_new_tokens: int, num_layers: int | None, dtype: str | None, device: str
) -> str:
    """`text` with its greedy continuation by transformers' own generate(), in float32 on a CPU.

    Raises CheckpointError where transformers cannot run it, ExportError for values out of range.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    checkpoint = Checkpoint.find(model)
    if num_layers is not None and not 1 <= num_layers <= checkpoint.layers:
        raise ExportError(f"num_layers is {num_layers}; {model} has {checkpoint.layers} layers")
    if device == "cuda" and not torch.cuda.is_available():
        raise ExportError("device cuda was asked for, and torch sees no GPU; use --device cpu")
    if not text:
        raise ExportError("--input is empty; give a prompt")
    try:
        config = AutoConfig.from_pretrained(checkpoint.folder, local_files_only=True)
        if num_layers is not None:
            config.num_hidden_layers = num_layers
            if getattr(config, "layer_types", None):
                config.layer_types = config.layer_types[:num_layers]
        tokenizer = AutoTokenizer.from_pretrained(checkpoint.folder, local_files_only=True)
        loaded = AutoModelForCausalLM.from_pretrained(
            checkpoint.folder,
            config=config,
            dtype=getattr(torch, dtype or ("float32" if device == "cpu" else checkpoint.dtype)),
            local_files_only=True,
        )
    except (ValueError, OSError, KeyError) as error:
        raise CheckpointError(f"transformers cannot read {checkpoint.folder}: {error}") from None
    inputs = tokenizer(text, return_tensors="pt").to(device)
    with torch.no_grad():
        tokens = loaded.to(device).eval().generate(**inputs, do_sample=False, max_new_tokens=max_new_tokens)
    result: str = tokenizer.decode(tokens[0], skip_special_tokens=True)
    return result
