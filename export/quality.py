"""What quantising costs: the quantised model beside the same model in float32, token by token on a text."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from cleave.errors import ExportError
from cleave.export.calibration import Windows
from cleave.export.layerwise import Advance, Layerwise
from cleave.export.quantization import Quantization
from cleave.export.quantized import GROUP_SIZES

MAX_KL = 0.1
"""Nats a token, on average. A KL divergence of d means: a text that the float32 model itself would write has
a perplexity e^d times as high for the quantised one, here 10 % more. What int8 and int4 cost a model that
stands them is a tenth of that and less; a matrix that went wrong costs several times as much."""

_ROWS = 64
"""Rows of logits that are compared at a time: those of a large vocabulary are large."""
_LARGEST = 700.0
"""Its exponential is still a float."""
_Logits = npt.NDArray[np.float32]
_Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Quality:
    """How a quantised model reads a text, and how far it is from float32 where that is known."""

    text: str
    """"bundled", or the file that was given."""
    tokens: int
    """Rows of logits that were looked at: all but the first of each window, which has seen nothing yet."""
    perplexity: float
    """exp of the mean of -log p(next token)."""
    reference_perplexity: float | None = None
    """The same in float32."""
    kl: float | None = None
    """Mean over the tokens of KL(float32 || quantised), in nats."""
    kl_error: float | None = None
    """Standard error of that mean."""
    kl_99: float | None = None
    """99 of 100 tokens are below this."""
    same_token: float | None = None
    """Share of the tokens after which both find the same next one likeliest."""

    @property
    def perplexity_ratio(self) -> float | None:
        """Quantised by float32."""
        return self.perplexity / self.reference_perplexity if self.reference_perplexity else None

    def to_dict(self) -> dict[str, Any]:
        """As the manifest has it; what is not known is left out."""
        known = asdict(self) | {"perplexity_ratio": self.perplexity_ratio}
        return {name: value for name, value in known.items() if value is not None}

    def check(self, max_kl: float, quantization: Quantization) -> None:
        """Raises ExportError where the model, quantised so, is too far from float32, or no number at all."""
        whole = self.perplexity if self.reference_perplexity is None else self.reference_perplexity
        if not math.isfinite(whole):
            raise ExportError(
                f"the model has a perplexity of {whole}{', in float32 too' if self.kl is not None else ''}; "
                "nothing was exported: is the checkpoint whole? --force exports it nonetheless"
            )
        if self.kl is not None and not self.kl <= max_kl:
            raise ExportError(
                f"the quantised model is too far from float32: KL divergence {self.kl:.3f} nats a token, "
                f"allowed {max_kl:g} (perplexity {self.perplexity:.2f}, in float32 {whole:.2f}); "
                f"nothing was exported: {_advice(quantization)}, or export it with --force"
            )


def compare(
    model: Layerwise,
    reference: Layerwise | None,
    windows: Windows,
    *,
    text: str,
    advance: Advance = lambda: None,
) -> Quality:
    """Compare what two models make of the same windows, which both have read.

    `text` is what they are of; `advance` is called after each. Without a reference there is a perplexity
    and nothing else.
    """
    losses: list[_Floats] = []
    reference_losses: list[_Floats] = []
    divergences: list[_Floats] = []
    same: list[npt.NDArray[np.bool_]] = []
    tokens = 0
    for start, stop, following, is_last in _blocks(windows):
        got = _log_softmax(model.logits(start, stop))
        losses.append(-got[np.arange(len(following)), following])
        tokens += len(got)
        if reference is not None:
            wanted = _log_softmax(reference.logits(start, stop))
            reference_losses.append(-wanted[np.arange(len(following)), following])
            divergences.append((np.exp(wanted) * (wanted - got)).sum(1))
            same.append(got.argmax(1) == wanted.argmax(1))
        if is_last:
            advance()
    perplexity = _perplexity(losses)
    if reference is None:
        return Quality(text, tokens, perplexity)
    kl = np.concatenate(divergences)
    return Quality(
        text,
        tokens,
        perplexity,
        reference_perplexity=_perplexity(reference_losses),
        kl=float(kl.mean()),
        kl_error=float(kl.std(ddof=1) / math.sqrt(len(kl))),
        kl_99=float(np.quantile(kl, 0.99)),
        same_token=float(np.concatenate(same).mean()),
    )


def _advice(quantization: Quantization) -> str:
    """What comes nearer to float32."""
    is_int4 = quantization.method == "int4"
    ways = ["take --quantize int8" if is_int4 else "leave --quantize out"]
    if quantization.group_size is not None and quantization.group_size > min(GROUP_SIZES):
        ways.append("take a smaller --group_size")
    if quantization.lm_head:
        ways.append("leave lm_head out (--no_quantize_lm_head)")
    return ", ".join(ways)


def _blocks(windows: Windows) -> Iterator[tuple[int, int, npt.NDArray[np.int64], bool]]:
    """(first row, row after the last, next token of each row that has one, whether its window ends)."""
    first = 0
    for window in windows:
        for start in range(1, len(window), _ROWS):
            stop = min(start + _ROWS, len(window))
            yield first + start, first + stop, window[start + 1 : stop + 1], stop == len(window)
        first += len(window)


def _log_softmax(logits: _Logits) -> _Floats:
    wide = logits.astype(np.float64)
    wide -= wide.max(1, keepdims=True)
    wide -= np.log(np.exp(wide).sum(1, keepdims=True))
    return wide


def _perplexity(losses: list[_Floats]) -> float:
    mean = float(np.concatenate(losses).mean())
    return math.inf if mean >= _LARGEST else math.exp(mean)
