"""The text that a quantised model is measured on: one that comes with Cleave, or the user's own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from cleave.errors import ExportError

LEAST_TOKENS = 256
"""Fewer say nothing about a model."""
MOST_TOKENS = 2048
"""Of a longer text as many are taken, spread over all of it: the error of the mean is small by then."""
_WINDOW = 512
_SHORTEST = 3
"""A token to begin with, one to read, and one to be found."""
_BUNDLED = Path(__file__).with_name("calibration.txt")
"""Held-out facts of the demo corpus (`scripts/demo/corpus.py`): plain English that the demo checkpoint
was not trained on, and a text like any other to a larger model."""

Windows = list[npt.NDArray[np.int64]]
"""Tokens that are read one window after the other, each for itself: [tokens] int64 each."""


def calibration_text(file: Path | None) -> str:
    """The text of a file, or the bundled one.

    Raises ExportError where the file is missing, empty or no text in UTF-8.
    """
    path = file or _BUNDLED
    try:
        text = path.read_text("utf-8")
    except UnicodeDecodeError as error:
        raise ExportError(
            f"calibration file {path} is not UTF-8 (byte {error.start}); give plain text in UTF-8"
        ) from None
    except OSError as error:
        raise ExportError(f"calibration file {path} cannot be read: {error.strerror}") from None
    if "\0" in text:
        raise ExportError(f"calibration file {path} is binary (it has a NUL); give plain text in UTF-8")
    if not text.strip():
        raise ExportError(
            f"calibration file {path} is empty; give a text of at least {LEAST_TOKENS} tokens, such as "
            "a page of what the model is for"
        )
    return text


def calibration_windows(text: str, tokenizer: Path, *, context: int, vocab: int) -> Windows:
    """The documents of a text, which empty lines divide, as windows of up to 512 tokens.

    Special tokens are added as the checkpoint does. `tokenizer` is a tokenizer.json; `context` and `vocab`
    are those of the model. Raises ExportError for fewer than `LEAST_TOKENS` tokens, or tokens that the
    embedding lacks.
    """
    encoder = Tokenizer.from_file(str(tokenizer))
    size = min(_WINDOW, context)
    windows: Windows = []
    for document in _documents(text):
        tokens = np.array(encoder.encode(document).ids, np.int64)
        cut = [tokens[start : start + size] for start in range(0, len(tokens), size)]
        windows += [window for window in cut if len(window) >= _SHORTEST]
    total = sum(map(len, windows))
    if total < LEAST_TOKENS:
        raise ExportError(
            f"the calibration text has {total} tokens; at least {LEAST_TOKENS} are needed: give a longer one"
        )
    largest = max(int(window.max()) for window in windows)
    if largest >= vocab:
        raise ExportError(
            f"the calibration text has token {largest}, and the embedding only {vocab} rows; "
            "give a text without it"
        )
    return _spread(windows, total)


def _documents(text: str) -> Iterator[str]:
    lines: list[str] = []
    for line in [*text.splitlines(), ""]:
        if line.strip():
            lines.append(line)
        elif lines:
            yield "\n".join(lines)
            lines = []


def _spread(windows: Windows, total: int) -> Windows:
    """Evenly many of all windows, so that about `MOST_TOKENS` tokens are left."""
    if total <= MOST_TOKENS:
        return windows
    count = max(1, round(len(windows) * MOST_TOKENS / total))
    return [windows[index * len(windows) // count] for index in range(count)]
