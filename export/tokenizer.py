"""The tokenizer part: tokenizer.json as the tokenizers library reads it, and what goes with it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from tokenizers import Tokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from cleave.errors import CheckpointError, ExportError, reason
from cleave.export.artifact import (
    CHAT_TEMPLATE,
    GENERATION_CONFIG,
    TOKENIZER,
    TOKENIZER_CONFIG,
    end_tokens,
)
from cleave.export.checkpoint import Checkpoint

_PROBES = ("San Francisco is a", " two  spaces\n\nand lines", "naïve café 東京 🎉", "x = [1, 2]; // 3.14")
_FILES = ("tokenizer.json", "*.model", "*.tiktoken", "vocab.*")
"""What tokenizers are kept in."""
_SAVED = (TOKENIZER, TOKENIZER_CONFIG, "special_tokens_map.json", CHAT_TEMPLATE)


def export_tokenizer(checkpoint: Checkpoint, folder: Path) -> tuple[str, ...]:
    """Write the tokenizer, the chat template and generation_config.json; gives back the file names.

    A SentencePiece model is converted by transformers. Serving reads tokenizer.json alone, so its
    encoding is compared with transformers' here; ExportError where they differ.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            checkpoint.folder, local_files_only=True, trust_remote_code=False
        )
    except Exception as error:  # its loaders raise whatever they come upon
        if not any(path for pattern in _FILES for path in checkpoint.folder.glob(pattern)):
            raise CheckpointError(
                f"{checkpoint.folder} has no tokenizer: put its tokenizer.json there, or tokenizer.model"
            ) from None
        raise CheckpointError(
            f"transformers cannot read the tokenizer of {checkpoint.folder}: {reason(error)}"
        ) from None
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise CheckpointError(
            f"the tokenizer of {checkpoint.folder} has no fast form; Cleave needs a tokenizer.json"
        )
    before = {path.name for path in folder.iterdir()}
    # Several templates would become a folder of files; in the config they stay together.
    several = isinstance(tokenizer.chat_template, dict)
    tokenizer.save_pretrained(folder, save_jinja_files=not several)
    for path in folder.iterdir():
        if path.name not in before and path.name not in _SAVED:
            path.unlink()
    plain = Tokenizer.from_file(str(folder / TOKENIZER))
    for text in _PROBES:
        ours, theirs = plain.encode(text).ids, tokenizer(text)["input_ids"]
        if ours != theirs:
            raise ExportError(
                f"tokenizer.json encodes {text!r} as {ours} and transformers as {theirs}; "
                "the tokenizer cannot be served without transformers"
            )
    if (checkpoint.folder / GENERATION_CONFIG).is_file():
        _check_generation_config(checkpoint.folder / GENERATION_CONFIG)
        shutil.copyfile(checkpoint.folder / GENERATION_CONFIG, folder / GENERATION_CONFIG)
    names = (*_SAVED, GENERATION_CONFIG)
    return tuple(name for name in names if (folder / name).is_file())


def _check_generation_config(path: Path) -> None:
    """Raises CheckpointError where serving could not read the file."""
    try:
        end_tokens(json.loads(path.read_text("utf-8")))
    except (ValueError, TypeError, AttributeError, ArithmeticError, RecursionError) as error:
        raise CheckpointError(f"{path} is damaged: {reason(error)}") from None
