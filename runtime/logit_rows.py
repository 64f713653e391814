"""Which rows of a step the engine has to give logits for, and whose they are."""

from __future__ import annotations

from itertools import accumulate
from typing import Any

import numpy as np
import numpy.typing as npt

from cleave.runtime.sampling.logprobs import TokenLogprobs
from cleave.runtime.sampling.sampler import Sampler
from cleave.runtime.step import Step


class LogitRows:
    """First the last rows of the chunks that sample, in their order, then those that score a prompt.

    The logits at a position of a prompt are for its next token.
    """

    def __init__(self, group: Step) -> None:
        """The rows of a group of chunks."""
        ends = list(accumulate(chunk.count for chunk in group))
        rows = [end - 1 for end, chunk in zip(ends, group, strict=True) if chunk.samples]
        self.sequences = [chunk.sequence for chunk in group if chunk.samples]
        """Of the rows that are sampled, one each."""
        self._first_scored = len(rows)
        self._scored = []
        for end, chunk in zip(ends, group, strict=True):
            for position in chunk.scored:
                self._scored.append((chunk.sequence, position))
                rows.append(end - chunk.end + position)
        # An engine always computes a row; where no chunk reaches its end, the first one's token goes nowhere.
        lone = self._scored[0][0] if self._scored else group[0].sequence
        self.owners = self.sequences or [lone]
        """Of every row that is sampled, its sequence."""
        self.sampled = len(self.owners)
        """How many rows are sampled."""
        self.states = [sequence.sampling for sequence in self.sequences] or [None]
        """How each of those is sampled."""
        self.rows: npt.NDArray[np.int64] = np.array(rows or [ends[0] - 1], np.int64)
        """[rows] of the step, each once."""

    @property
    def has_scores(self) -> bool:
        """Whether some rows score a prompt."""
        return bool(self._scored)

    def score(self, logits: npt.NDArray[Any], sampler: Sampler) -> dict[int, list[TokenLogprobs]]:
        """The logprobs of the tokens of prompts, by sequence id. logits [rows, vocab] float32."""
        result: dict[int, list[TokenLogprobs]] = {}
        for row, (sequence, position) in enumerate(self._scored, self._first_scored):
            top = sequence.sampling.prompt_logprobs if sequence.sampling else None
            token = sequence.prompt[position + 1]
            result.setdefault(sequence.id, []).append(sampler.logprobs(logits[row], token, top or 0))
        return result
