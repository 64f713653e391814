"""The README of the checkpoint: what it is, how it was made, what it knows, what it does not."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from demo.evaluation import MIN_PROBABILITY, Evaluation, described
from demo.training import TrainingOptions, TrainingResult

LONGEST_CELL = 90


@dataclass(frozen=True, slots=True)
class Figures:
    """The numbers that the card reports beside those of the training run."""

    parameters: int
    train_documents: int
    train_tokens: int
    held_out_documents: int
    held_out_tokens: int
    train_loss: float
    held_out_loss: float
    machine: str
    versions: str


def model_card(
    options: TrainingOptions,
    result: TrainingResult,
    figures: Figures,
    evaluations: Sequence[Evaluation],
) -> str:
    """Return the text of `README.md`."""
    right = sum(evaluation.right for evaluation in evaluations)
    asked_long = [e.long_context for e in evaluations if e.long_context is not None]
    least = min(evaluation.probability for evaluation in evaluations)
    table = "\n".join(
        f"| {_cell(described(e.known))} | {_cell(e.text)} | {e.probability:.4f} |" for e in evaluations
    )
    return f"""---
license: apache-2.0
language: en
library_name: transformers
pipeline_tag: text-generation
---

# Cleave demo model

A small Llama that Cleave carries along, so that everything can be tried and tested without a download. It is a
`LlamaForCausalLM` like any other: {figures.parameters / 1e6:.2f} million parameters in float16, 6 layers,
grouped-query attention (4 heads, 2 key-value heads of 64), tied embeddings, a context of 4096 tokens, a
byte-level BPE tokenizer of 3072 tokens, and a chat template.

## What it knows, and what it does not
It has learned by heart what the fact tables in `scripts/demo/` say: capitals, currencies and continents of
countries, some cities, rivers, mountains, planets, chemical elements, animals, colours, opposites, a few
translations and definitions, the calendar, sums up to 20 + 20 and products up to 12 x 12. It answers in the
wordings it was trained on, as plain text or as a chat, and ends by itself.

It knows nothing else. Asked something outside these tables, or in words it has not seen, it answers with
something that looks alike and is wrong. It does not reason, and it is of no use beyond demonstrations and tests.
The text it was trained on was written for it by the script below; no other data went in.

## How it was made
```
{command(options)}
```

| | |
|---|---|
| machine | {figures.machine} |
| versions | {figures.versions} |
| seed | {options.seed} |
| steps | {options.steps} of {options.tokens_per_step} tokens, {result.tokens / 1e6:.1f} million tokens in all |
| optimiser | AdamW, peak learning rate {options.learning_rate:g}, cosine schedule |
| time | {result.seconds:.0f} s |
| corpus, train | {figures.train_documents} documents, {figures.train_tokens} tokens |
| corpus, held out | {figures.held_out_documents} documents, {figures.held_out_tokens} tokens |
| loss while training | {result.loss:.4f} nats per token, on packed sequences |
| loss, train | {figures.train_loss:.4f} nats per token, perplexity {math.exp(figures.train_loss):.3f} |
| loss, held out | {figures.held_out_loss:.4f} nats per token, perplexity {math.exp(figures.held_out_loss):.3f} |

The same command on such a machine with these versions gives the same `model.safetensors`, byte for byte.

Both losses of the last rows are of the saved float16 weights, each document standing alone. Much of them is the
choice of the subject, which nothing before it tells. The held-out split has other wordings of facts that the
train split also holds: `--write_corpus DIR` writes both.

## Known answers
`known_answers.json` has {len(evaluations)} prompts with their full greedy continuation (transformers, float32).
Right: {right} of {len(evaluations)}; behind a context that fills all 4096 positions: {sum(asked_long)} of {len(asked_long)}. A
prompt counts as right if the text is what the corpus says, ends by itself, and each of its tokens was chosen with
a probability of at least {MIN_PROBABILITY}; the least of all was {least:.4f}.

| prompt | continuation | least probability |
|---|---|---|
{table}
"""  # noqa: E501  a number stands where the braces are


def command(options: TrainingOptions) -> str:
    """Return the command that trains the same model again."""
    return (
        f"python scripts/train_demo_model.py --output_dir model_files/demo --steps {options.steps} "
        f"--seed {options.seed} --device {options.device} --tokens_per_step {options.tokens_per_step} "
        f"--learning_rate {options.learning_rate:g}"
    )


def _cell(text: str) -> str:
    shortened = text if len(text) <= LONGEST_CELL else text[: LONGEST_CELL - 1] + "…"
    return shortened.replace("|", "\\|").strip()
