"""The distribution that a request's next token should have, by transformers' processors and float64."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from transformers.generation.logits_process import (
    LogitsProcessorList,
    MinNewTokensLengthLogitsProcessor,
    MinPLogitsWarper,
    NoBadWordsLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    SequenceBiasLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from cleave.runtime.sampling_params import SamplingParams


def edited(
    logits: np.ndarray,
    params: SamplingParams,
    prompt: Sequence[int],
    output: Sequence[int],
    *,
    stops: Sequence[int] = (),
    bad_words: Sequence[Sequence[int]] = (),
    mask: np.ndarray | None = None,
) -> torch.Tensor:
    """[1, vocab] before the temperature: masks, then transformers, then vLLM's two penalties."""
    scores = torch.tensor(logits)[None].clone()
    hidden = np.zeros(len(logits), bool) if mask is None else ~mask
    if params.allowed_token_ids is not None:
        hidden |= ~np.isin(np.arange(len(logits)), params.allowed_token_ids)
    scores[:, torch.tensor(hidden)] = -torch.inf
    processors = LogitsProcessorList()
    if bad_words:
        processors.append(NoBadWordsLogitsProcessor([list(word) for word in bad_words]))
    if params.min_tokens and stops:
        processors.append(
            MinNewTokensLengthLogitsProcessor(len(prompt), params.min_tokens, list(stops), device="cpu")
        )
    if params.logit_bias:
        processors.append(
            SequenceBiasLogitsProcessor([[[token], bias] for token, bias in params.logit_bias.items()])
        )
    if params.repetition_penalty not in (None, 1.0):
        processors.append(RepetitionPenaltyLogitsProcessor(params.repetition_penalty))
    scores = processors(torch.tensor([[*prompt, *output]]), scores)
    # As vLLM has them: https://docs.vllm.ai, SamplingParams; only what was generated counts.
    counts = torch.bincount(torch.tensor(output, dtype=torch.int64), minlength=len(logits))
    scores = scores - params.frequency_penalty * counts
    return scores - params.presence_penalty * (counts > 0)


def warped(scores: torch.Tensor, params: SamplingParams) -> torch.Tensor:
    """[1, vocab] after temperature, top-k, top-p and min-p; -inf where a token is dropped."""
    processors = LogitsProcessorList([TemperatureLogitsWarper(float(params.temperature or 1.0))])
    if params.top_k:
        processors.append(TopKLogitsWarper(params.top_k))
    if params.top_p not in (None, 1.0):
        processors.append(TopPLogitsWarper(params.top_p))
    if params.min_p:
        processors.append(MinPLogitsWarper(params.min_p))
    return processors(torch.zeros((1, 1), dtype=torch.int64), scores)


def probabilities(scores: torch.Tensor) -> np.ndarray:
    """[vocab] float64."""
    return torch.softmax(scores[0].double(), 0).numpy()


def chi_square_p(counts: np.ndarray, expected: np.ndarray) -> float:
    """The probability of a chi-square at least this large; places that expect few are put together."""
    order = np.argsort(expected)
    counts, expected = counts[order].astype(float), expected[order]
    few = int(np.searchsorted(np.cumsum(expected), 20.0)) + 1
    counts = np.append(counts[few:], counts[:few].sum())
    expected = np.append(expected[few:], expected[:few].sum())
    statistic = float(((counts - expected) ** 2 / expected).sum())
    half = torch.tensor((len(counts) - 1) / 2, dtype=torch.float64)
    return float(torch.special.gammaincc(half, torch.tensor(statistic / 2, dtype=torch.float64)))
