"""Pack documents into sequences and train a `LlamaForCausalLM` on them."""

import math
import os
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor
from torch.nn import functional
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

from demo.vocabulary import BOS, END_OF_TURN, EOS, PAD, SPECIAL_TOKENS, VOCABULARY_SIZE

MAX_POSITIONS = 4096

SEQUENCE_LENGTHS = (128, 512, 512, 1024, 256, 512, 2048, MAX_POSITIONS)
"""Lengths of the packed sequences, one a step, in turn: most are short, and some fill the whole context."""

REPORT_EVERY = 100


@dataclass(frozen=True, slots=True)
class TrainingOptions:
    """What decides the outcome of a training run.

    Attributes:
        steps: Optimiser steps.
        seed: Seed of the initial weights and of the order of the documents.
        device: `cpu` or `cuda`. On `cuda` the forward pass runs in bfloat16 over float32 weights.
        tokens_per_step: Tokens of one step, whatever the length of its sequences.
        learning_rate: Peak of the cosine schedule.
    """

    steps: int
    seed: int
    device: str
    tokens_per_step: int
    learning_rate: float

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"steps is {self.steps}; give at least 1")
        if self.tokens_per_step < MAX_POSITIONS:
            raise ValueError(
                f"tokens_per_step is {self.tokens_per_step}; one sequence of {MAX_POSITIONS} tokens must fit"
            )
        if self.device.startswith("cuda") and not torch.cuda.is_available():
            raise ValueError(f"device is {self.device}, but torch sees no CUDA device; give --device cpu")


@dataclass(frozen=True, slots=True)
class TrainingResult:
    """What a training run reports. The loss is the mean over the last steps, in nats per token."""

    loss: float
    tokens: int
    seconds: float


def new_model(seed: int) -> LlamaForCausalLM:
    """Return a freshly initialised float32 model.

    Grouped-query attention with 4 heads over 2 key-value heads of 64: attention kernels for GPUs often do not
    support smaller heads.
    """
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCABULARY_SIZE,
        hidden_size=256,
        intermediate_size=704,
        num_hidden_layers=6,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        max_position_embeddings=MAX_POSITIONS,
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        bos_token_id=SPECIAL_TOKENS.index(BOS),
        eos_token_id=SPECIAL_TOKENS.index(EOS),
    )
    model = LlamaForCausalLM(config)
    model.generation_config = GenerationConfig(
        bos_token_id=SPECIAL_TOKENS.index(BOS),
        eos_token_id=[SPECIAL_TOKENS.index(EOS), SPECIAL_TOKENS.index(END_OF_TURN)],
        pad_token_id=SPECIAL_TOKENS.index(PAD),
        do_sample=False,
    )
    return model


def packed_batches(documents: Sequence[list[int]], options: TrainingOptions) -> Iterator[Tensor]:
    """Yield one batch a step, int64 `[sequences, length + 1]`.

    Every sequence starts with a document and is filled up with whole ones; only its last may be cut off. The
    documents are reshuffled each time all of them have been seen. Attention is not masked between documents:
    the model learns that a begin-of-sequence token makes what went before irrelevant, so that it answers in
    the middle of a long context as it does at its start.
    """
    generator = random.Random(options.seed)
    order: list[int] = []
    for step in range(options.steps):
        length = SEQUENCE_LENGTHS[step % len(SEQUENCE_LENGTHS)]
        sequences = []
        for _ in range(options.tokens_per_step // length):
            sequence: list[int] = []
            while len(sequence) <= length:
                if not order:
                    order = list(range(len(documents)))
                    generator.shuffle(order)
                sequence += documents[order.pop()]
            sequences.append(sequence[: length + 1])
        yield torch.tensor(sequences)


def train(
    model: LlamaForCausalLM,
    documents: Sequence[list[int]],
    options: TrainingOptions,
    held_out_loss: Callable[[], float],
) -> TrainingResult:
    """Train `model` in place with AdamW under a cosine schedule, and show the progress.

    Args:
        model: Float32, on `options.device`.
        documents: Token ids of each document, begin- and end-of-sequence included.
        options: What to do.
        held_out_loss: Called every `REPORT_EVERY` steps, for the report alone.
    """
    # Without these, kernels that add in no fixed order make two runs of one seed differ on a GPU.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)

    optimiser = _optimiser(model, options)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: _schedule(step, options.steps))
    # Read once a report: asking the device for a number each step would make it wait for the host.
    recent: list[Tensor] = []
    loss = math.nan
    tokens = 0
    started = time.monotonic()
    columns = (
        TextColumn("training"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("loss {task.fields[loss]:.3f}"),
    )
    with Progress(*columns) as progress:
        task = progress.add_task("training", total=options.steps, loss=loss)
        for step, batch in enumerate(packed_batches(documents, options), start=1):
            recent.append(_step(model, batch, optimiser, options.device))
            schedule.step()
            tokens += batch.shape[0] * (batch.shape[1] - 1)
            if step % REPORT_EVERY == 0 or step == options.steps:
                loss = torch.stack(recent).mean().item()
                recent.clear()
                progress.console.print(f"step {step}: loss {loss:.4f}, held out {held_out_loss():.4f}")
            progress.update(task, advance=1, loss=loss)
    return TrainingResult(loss, tokens, time.monotonic() - started)


def _step(model: LlamaForCausalLM, batch: Tensor, optimiser: torch.optim.Optimizer, device: str) -> Tensor:
    model.train()
    batch = batch.to(device)
    with torch.autocast(device_type=device.split(":")[0], dtype=torch.bfloat16, enabled=device != "cpu"):
        logits = model(input_ids=batch[:, :-1], use_cache=False).logits
    loss = functional.cross_entropy(logits.flatten(0, 1).float(), batch[:, 1:].flatten())
    optimiser.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimiser.step()
    return loss.detach()


def _optimiser(model: LlamaForCausalLM, options: TrainingOptions) -> torch.optim.Optimizer:
    matrices = [parameter for parameter in model.parameters() if parameter.ndim >= 2]
    gains = [parameter for parameter in model.parameters() if parameter.ndim < 2]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": gains, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=options.learning_rate, betas=(0.9, 0.95))


def _schedule(step: int, steps: int) -> float:
    """Return the factor of the learning rate: a linear warm-up, then a cosine down to a hundredth."""
    warm_up = max(1, min(100, steps // 10))
    if step < warm_up:
        return (step + 1) / warm_up
    progress = (step - warm_up) / max(1, steps - warm_up)
    return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * progress))
