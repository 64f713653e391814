"""What kv.run's README says of Llama-2-7B, and the limits of the cards it names.

The two tables there are of different versions of kv.run and say neither how they were measured nor with
which dtype; float16 is taken here. Throughputs in tokens a second, where a prefill counts one token for
each sequence. Cards: memory bandwidth and dense float16 rate with float32 accumulation, from NVIDIA's
data sheet of the RTX 6000 Ada Generation and its GA102 whitepaper.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from cleave.kvcache.spec import AttentionSpec
from cleave.runtime.bench.counts import ModelShape
from cleave.runtime.bench.limits import Limits
from cleave.runtime.bench.lockstep import decode_steps, prefill_steps

BATCHES = (1, 2, 4, 8, 16, 32)
PROMPT = 10
OUTPUT = 8

LLAMA_2_7B = ModelShape.llama(
    hidden=4096,
    intermediate=11008,
    layers=32,
    vocab=32000,
    spec=AttentionSpec(heads=32, kv_heads=32, head_dim=128, scale=128**-0.5),
)


@dataclass(frozen=True, slots=True)
class Card:
    """A GPU of the tables, and its columns, one figure for each of `BATCHES`."""

    name: str
    limits: Limits
    prefill: tuple[tuple[float, ...], tuple[float, ...]]
    """FlashInfer and TGI."""
    decode: tuple[tuple[float, ...], tuple[float, ...]]

    def figures(self) -> dict[str, Any]:
        """The columns, and at each batch what the card could do at most."""
        rows = []
        for step, columns in (("prefill", self.prefill), ("decode", self.decode)):
            for batch, flashinfer, tgi in zip(BATCHES, *columns, strict=True):
                rows.append(
                    {
                        "step": step,
                        "batch": batch,
                        "flashinfer": flashinfer,
                        "tgi": tgi,
                        "limit_tokens_per_s": self.limit(step, batch),
                    }
                )
        return {"name": self.name, "bytes_per_s": self.limits.bandwidth, "rows": rows}

    def limit(self, step: str, batch: int) -> float:
        """Tokens a second at most: of the sequences' first tokens, or of the 7 decode steps."""
        if step == "prefill":
            steps, rows, tokens = prefill_steps(batch, PROMPT, batch * PROMPT), batch, batch
        else:
            steps = decode_steps(batch, PROMPT, OUTPUT - 1)
            rows, tokens = batch, batch * (OUTPUT - 1)
        work = [LLAMA_2_7B.work(chunks, rows, weight_item=2, kv_item=2) for chunks in steps]
        return tokens / sum(self.limits.seconds(part, "float16") for part in work)


CARDS = (
    Card(
        "RTX 6000 Ada",
        Limits(960e9, {"float16": 364.2e12}),
        prefill=(
            (52.16, 101.64, 191.48, 323.21, 512.50, 697.89),
            (41.14, 78.69, 154.11, 290.82, 538.15, 783.61),
        ),
        decode=(
            (56.55, 108.55, 207.10, 383.92, 682.78, 1119.92),
            (40.84, 77.85, 154.27, 297.53, 562.83, 993.33),
        ),
    ),
    Card(
        "RTX 3090",
        Limits(936e9, {"float16": 71e12}),
        prefill=(
            (44.33, 74.81, 133.93, 189.78, 231.24, 270.12),
            (23.32, 46.68, 90.51, 168.27, 218.12, 265.74),
        ),
        decode=(
            (50.21, 89.70, 174.92, 324.06, 567.67, 861.50),
            (23.13, 47.26, 93.09, 175.21, 337.92, 601.03),
        ),
    ),
)


def published() -> dict[str, Any]:
    """Both cards, as the tables and the results show them."""
    return {"model": "Llama-2-7B", "cards": [card.figures() for card in CARDS]}
