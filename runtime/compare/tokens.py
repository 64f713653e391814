"""The tokens that are compared: given in a file, or random ones."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from cleave.errors import CompareError
from cleave.export.manifest import Manifest

_COUNT = 64


def tokens_for(manifest: Manifest, file: Path | None, seed: int = 0) -> list[int]:
    """Token ids of one sequence; without a file, 64 random ones (or as many as the context takes).

    A file holds a JSON list of token ids, or the ids apart by white space. Raises CompareError for a
    file that is missing or is not that, for ids out of the vocabulary, and for more than the context.
    """
    if file is None:
        count = min(_COUNT, manifest.max_position)
        return [int(token) for token in np.random.default_rng(seed).integers(0, manifest.vocab_size, count)]
    tokens = _read(file)
    outside = [token for token in tokens if not 0 <= token < manifest.vocab_size]
    if outside:
        raise CompareError(
            f"{file} has token id {outside[0]}; ids of this model go from 0 to {manifest.vocab_size - 1}"
        )
    if not 1 <= len(tokens) <= manifest.max_position:
        raise CompareError(
            f"{file} has {len(tokens)} token ids; give 1 to {manifest.max_position}, the model's context"
        )
    return tokens


def _read(file: Path) -> list[int]:
    try:
        text = file.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CompareError(f"{file} cannot be read: {error}") from None
    try:
        found = json.loads(text) if text.lstrip().startswith("[") else [int(word) for word in text.split()]
    except ValueError:
        found = None
    if not isinstance(found, list) or not all(type(token) is int for token in found):
        raise CompareError(
            f"{file} is not a list of token ids; write [1, 2, 3], or the ids apart by white space"
        )
    return found
