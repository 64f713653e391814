"""What a checkpoint has learned: held-out loss, and the known answers against greedy decoding."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn import functional
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

from demo.known_answers import KnownAnswer
from demo.training import MAX_POSITIONS
from demo.vocabulary import PAD, SPECIAL_TOKENS

MIN_PROBABILITY = 0.9
"""A known answer counts only if greedy decoding was at least this sure of every token of it."""

SPARE_TOKENS = 8
"""How far greedy decoding may run past the expected end before it is stopped."""


@dataclass(frozen=True, slots=True)
class Evaluation:
    """One known answer, and what the model made of it.

    Attributes:
        known: What the corpus says.
        text: What greedy decoding said, special tokens left out.
        ended: Whether it ended by itself.
        probability: The least probability of any token it chose, the end token included.
        long_context: Whether the answer is the most probable one behind a context of nearly 4096 tokens, too;
            `None` where that was not asked.
    """

    known: KnownAnswer
    text: str
    ended: bool
    probability: float
    long_context: bool | None = None

    @property
    def right(self) -> bool:
        """Whether the answer is the known one, decisively."""
        sure = self.ended and self.probability >= MIN_PROBABILITY
        return sure and self.text == self.known.text and self.long_context is not False


def load(directory: Path, device: str) -> tuple[LlamaForCausalLM, Any]:
    """Return the model of a saved checkpoint in float32, and its tokenizer."""
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).to(device).eval()
    return model, AutoTokenizer.from_pretrained(directory)


@torch.inference_mode()
def mean_loss(model: LlamaForCausalLM, documents: Sequence[list[int]], device: str) -> float:
    """Return the mean loss in nats per token, each document standing alone."""
    model.eval()
    pad = SPECIAL_TOKENS.index(PAD)
    total, count = 0.0, 0
    ordered = sorted(documents, key=len)
    for start in range(0, len(ordered), 64):
        chunk = [torch.tensor(document) for document in ordered[start : start + 64]]
        batch = torch.nn.utils.rnn.pad_sequence(chunk, batch_first=True, padding_value=pad).to(device)
        logits = model(input_ids=batch[:, :-1], use_cache=False).logits.float()
        targets = batch[:, 1:].flatten()
        total += functional.cross_entropy(
            logits.flatten(0, 1), targets, ignore_index=pad, reduction="sum"
        ).item()
        count += int((targets != pad).sum())
    return total / count


def evaluate(
    model: LlamaForCausalLM,
    tokenizer: Any,
    known: Sequence[KnownAnswer],
    filler: Sequence[list[int]],
    device: str,
) -> list[Evaluation]:
    """Decode every known answer greedily, and every fourth one again at the end of a full context.

    Args:
        model: Float32, on `device`.
        tokenizer: The checkpoint's.
        known: What to ask, and what the answer is.
        filler: Documents to fill the long contexts with.
        device: Where the model is.
    """
    generator = random.Random(0)
    evaluations = []
    for index, answer in enumerate(known):
        prompt = _encode(tokenizer, answer)
        expected = tokenizer.encode(answer.text, add_special_tokens=False)
        text, ended, probability = _greedy(model, tokenizer, prompt, len(expected) + SPARE_TOKENS, device)
        long_context = None
        if index % 4 == 0:
            before = _fill(filler, MAX_POSITIONS - len(prompt) - len(expected), generator)
            long_context = _is_most_probable(model, before + prompt, expected, device)
        evaluations.append(Evaluation(answer, text, ended, probability, long_context))
    return evaluations


def print_table(evaluations: Sequence[Evaluation], console: Console) -> None:
    """Print one row for each known answer."""
    table = Table("prompt", "greedy continuation", "least probability", "long context", "right")
    for evaluation in evaluations:
        table.add_row(
            described(evaluation.known),
            evaluation.text,
            f"{evaluation.probability:.4f}",
            {None: "-", True: "yes", False: "NO"}[evaluation.long_context],
            "yes" if evaluation.right else f"NO, expected {evaluation.known.text!r}",
        )
    console.print(table, markup=False)


def described(known: KnownAnswer) -> str:
    """Return the prompt of a known answer on one line."""
    if isinstance(known.prompt, str):
        return known.prompt
    return " / ".join(f"{message.role}: {message.content}" for message in known.prompt)


def _encode(tokenizer: Any, known: KnownAnswer) -> list[int]:
    if isinstance(known.prompt, str):
        ids: list[int] = tokenizer.encode(known.prompt)
        return ids
    messages = known.to_json()["messages"]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    chat_ids: list[int] = tokenizer.encode(text, add_special_tokens=False)
    return chat_ids


@torch.inference_mode()
def _greedy(
    model: LlamaForCausalLM, tokenizer: Any, prompt: list[int], max_new_tokens: int, device: str
) -> tuple[str, bool, float]:
    input_ids = torch.tensor([prompt], device=device)
    output = model.generate(
        input_ids,
        attention_mask=torch.ones_like(input_ids),
        max_new_tokens=max_new_tokens,
        do_sample=False,
        output_logits=True,
        return_dict_in_generate=True,
    )
    tokens = output.sequences[0, len(prompt) :]
    logits: Tensor = torch.cat(output.logits).float()
    chosen = logits.softmax(-1).gather(1, tokens[:, None])
    ended = int(tokens[-1]) in model.generation_config.eos_token_id
    return tokenizer.decode(tokens, skip_special_tokens=True), ended, float(chosen.min())


@torch.inference_mode()
def _is_most_probable(model: LlamaForCausalLM, before: list[int], answer: list[int], device: str) -> bool:
    ids = torch.tensor([before + answer], device=device)
    logits = model(input_ids=ids, use_cache=False, logits_to_keep=len(answer) + 1).logits[0]
    best = logits.argmax(-1).tolist()
    return best[:-1] == answer and best[-1] in model.generation_config.eos_token_id


def _fill(documents: Sequence[list[int]], length: int, generator: random.Random) -> list[int]:
    """Return whole documents, at most `length` tokens of them, nearly as many as fit."""
    tokens: list[int] = []
    while True:
        document = generator.choice(documents)
        if len(tokens) + len(document) > length:
            return tokens
        tokens += document
