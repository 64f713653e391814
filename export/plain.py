"""Plain transformers, to compare with."""

from __future__ import annotations

from cleave.errors import CheckpointError, ExportError, reason
from cleave.export.checkpoint import Checkpoint
from cleave.export.request import check_device, check_dtype, check_layers


def continue_text(
    model: str, text: str, max_new_tokens: int, num_layers: int | None, dtype: str | None, device: str
) -> str:
    """`text` with its greedy continuation by transformers' own generate(), in float32 on a CPU.

    A checkpoint that is quantised answers with the matrices that its integers stand for.

    Raises CheckpointError where transformers cannot run it, ExportError for values out of range.
    """
    check_dtype(dtype)
    check_device(device)
    if not text:
        raise ExportError("--input is empty; give a prompt")
    if max_new_tokens < 1:
        raise ExportError(f"max_new_tokens is {max_new_tokens}; it must be at least 1")
    checkpoint = Checkpoint.find(model)
    check_layers(num_layers, model=model, layers=checkpoint.layers)

    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from cleave.export.config import load_config
    from cleave.export.dequantized import use_weights
    from cleave.export.trace import quiet

    ready = checkpoint.ready
    default = "float32" if device == "cpu" else checkpoint.dtype
    config = load_config(checkpoint.folder, num_layers)
    checkpoint.require_safetensors()
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            checkpoint.folder, local_files_only=True, trust_remote_code=False
        )
        with quiet():  # it reports all that is packed as missing
            loaded = AutoModelForCausalLM.from_pretrained(
                checkpoint.folder,
                config=config,
                dtype=torch.float32 if ready else getattr(torch, dtype or default),
                use_safetensors=True,
                local_files_only=True,
                trust_remote_code=False,
            )
    except Exception as error:  # its loaders raise whatever they come upon
        raise CheckpointError(f"transformers cannot read {checkpoint.folder}: {reason(error)}") from None
    if ready is not None:
        use_weights(loaded, ready.all_dequantized(config.num_hidden_layers))
        loaded = loaded.to(getattr(torch, dtype or default))
    inputs = tokenizer(text, return_tensors="pt").to(device)
    with torch.no_grad():
        tokens = loaded.to(device).eval().generate(**inputs, do_sample=False, max_new_tokens=max_new_tokens)
    result: str = tokenizer.decode(tokens[0], skip_special_tokens=True)
    return result
