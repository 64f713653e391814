"""The law of the sampler: 10^5 draws against the exact distribution, which transformers gives."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from sampling_truth import chi_square_p, edited, probabilities, warped

from cleave.runtime.sampling.history import BadWords, TokenCounts
from cleave.runtime.sampling.sampler import Sampler
from cleave.runtime.sampling.state import SamplingState
from cleave.runtime.sampling_params import SamplingDefaults, SamplingParams
from cleave.runtime.structured.params import StructuredOutput

VOCAB = 700
PROMPT = [3, 5, 5, 8, 600]
OUTPUT = [5, 9, 9, 9, 699, 11]
STOPS = [2, 650]
BAD_WORDS = [[4], [699, 11, 12], [8, 13]]
GRAMMAR = StructuredOutput(regex="x")
SEEDS, PLACES = 500, 200


class Mask:
    """A grammar that allows every third token."""

    is_complete = False

    def __init__(self) -> None:
        self.allowed = np.arange(VOCAB) % 3 != 0

    def mask(self) -> Any:
        bits = np.zeros((VOCAB + 31) // 32 * 32, bool)
        bits[:VOCAB] = self.allowed
        return np.packbits(bits, bitorder="little").view(np.uint32)

    def accept(self, token: int) -> None: ...


def logits() -> np.ndarray:
    """Some of them likely, some equal, most of them unlikely."""
    rng = np.random.default_rng(7)
    values = rng.standard_normal(VOCAB) * 1.5
    values[rng.choice(VOCAB, 30, replace=False)] += 3.0
    values[100:120] = values[100]
    return values.astype(np.float32)


def state(params: SamplingParams, output: Sequence[int] = (), **options: Any) -> SamplingState:
    made = SamplingState(params.resolved(SamplingDefaults()), PROMPT, VOCAB, **options)
    for token in output:
        made.accept(token)
    return made


def draws(params: dict[str, Any], **options: Any) -> np.ndarray:
    """How often each token comes in SEEDS * PLACES draws; the places are those of the answer."""
    sampler, row = Sampler(), logits()
    states = [state(SamplingParams(seed=seed, **params), OUTPUT, **options) for seed in range(SEEDS)]
    counts = np.zeros(VOCAB, np.int64)
    for place in range(PLACES):
        for one in states:
            one.generated = len(OUTPUT) + place
        sampled = sampler.sample(np.tile(row, (SEEDS, 1)), states)
        counts += np.bincount(sampled.tokens, minlength=VOCAB)
    return counts


FILTERS: dict[str, dict[str, Any]] = {
    "plain": {"temperature": 1.0},
    "cold": {"temperature": 0.4},
    "hot": {"temperature": 3.0},
    "top_k": {"temperature": 1.0, "top_k": 17},
    "top_k_of_most": {"temperature": 1.3, "top_k": 650},
    "top_p": {"temperature": 1.0, "top_p": 0.8},
    "top_p_of_nearly_all": {"temperature": 2.0, "top_p": 0.995},
    "min_p": {"temperature": 1.0, "min_p": 0.07},
    "top_k_top_p": {"temperature": 0.9, "top_k": 40, "top_p": 0.7},
    "top_p_min_p": {"temperature": 1.5, "top_p": 0.9, "min_p": 0.02},
    "all_filters": {"temperature": 1.2, "top_k": 60, "top_p": 0.95, "min_p": 0.03},
}
EDITS: dict[str, dict[str, Any]] = {
    "repetition": {"repetition_penalty": 1.7},
    "presence_frequency": {"presence_penalty": 1.5, "frequency_penalty": -0.8},
    "bias": {"logit_bias": {5: 4.0, 20: -100.0, 650: 6.0}},
    "allowed": {"allowed_token_ids": [1, 2, 5, 9, 100, 101, 102, 650, 699]},
    "min_tokens": {"min_tokens": 1000, "logit_bias": {650: 9.0, 300: 5.0}},
    "bad_words": {"bad_words": "x", "logit_bias": {4: 9.0, 12: 9.0, 13: 5.0}},
    "structured": {"structured": GRAMMAR, "logit_bias": {6: 9.0, 7: 4.0}},
    "everything": {
        "repetition_penalty": 0.8,
        "presence_penalty": 0.5,
        "frequency_penalty": 0.4,
        "logit_bias": {5: 3.0, 12: 8.0, 99: 7.0, 650: 5.0},
        "allowed_token_ids": list(range(1, VOCAB, 2)),
        "min_tokens": 1000,
        "bad_words": "x",
        "structured": GRAMMAR,
        "top_k": 50,
        "top_p": 0.97,
        "min_p": 0.01,
    },
}
CASES = list(FILTERS.items()) + [(name, {"temperature": 1.1} | case) for name, case in EDITS.items()]


def law(case: dict[str, Any]) -> float:
    """The probability of draws that fit the exact distribution no better than these."""
    params = SamplingParams(**case)
    options: dict[str, Any] = {"stop_token_ids": STOPS}
    exact: dict[str, Any] = {"stops": STOPS}
    if "bad_words" in case:
        options["bad_words"] = exact["bad_words"] = BAD_WORDS
    if "structured" in case:
        options["constraint"], exact["mask"] = Mask(), Mask().allowed
    expected = probabilities(warped(edited(logits(), params, PROMPT, OUTPUT, **exact), params))
    counts = draws(case, **options)
    assert counts.sum() == SEEDS * PLACES
    return 0.0 if counts[expected == 0].any() else chi_square_p(counts, expected * SEEDS * PLACES)


@pytest.mark.parametrize(("name", "case"), CASES, ids=[name for name, _ in CASES])
def test_draws_follow_the_exact_distribution(name: str, case: dict[str, Any]) -> None:
    assert law(case) > 1e-3


def test_the_chi_square_notices_a_temperature_that_is_five_percent_off() -> None:
    scores = edited(logits(), SamplingParams(), PROMPT, [])
    expected = probabilities(warped(scores, SamplingParams(temperature=1.05)))
    counts = draws({"temperature": 1.0})
    assert chi_square_p(counts, expected * SEEDS * PLACES) < 1e-3


# The law notices what goes wrong: each of these planted faults breaks it.

Patch = pytest.MonkeyPatch


def the_bias_comes_after_the_penalties(patch: Patch) -> None:
    edit = SamplingState.edit

    def late(self: SamplingState, row: Any) -> None:
        tokens, self.biased = self.biased, np.empty(0, np.int64)
        edit(self, row)
        self.biased = tokens
        row[tokens] += self.biases

    patch.setattr(SamplingState, "edit", late)


def the_penalties_come_twice(patch: Patch) -> None:
    edit = SamplingState.edit

    def twice(self: SamplingState, row: Any) -> None:
        edit(self, row)
        hidden = np.isinf(row)
        edit(self, row)
        row[hidden] = -np.inf

    patch.setattr(SamplingState, "edit", twice)


def a_token_of_the_prompt_counts_as_generated(patch: Patch) -> None:
    begin = TokenCounts.__init__

    def counted(self: TokenCounts, prompt: Any) -> None:
        begin(self, prompt)
        self.counts[: self.size] = 1

    patch.setattr(TokenCounts, "__init__", counted)


def only_the_last_token_counts(patch: Patch) -> None:
    patch.setattr(TokenCounts, "add", lambda self, token: TokenCounts.__init__(self, [token]))


def a_bad_word_is_matched_by_its_last_token_alone(patch: Patch) -> None:
    patch.setattr(BadWords, "banned", lambda self: np.array([4, 12, 13]))


def stop_tokens_come_before_min_tokens(patch: Patch) -> None:
    edit = SamplingState.edit

    def early(self: SamplingState, row: Any) -> None:
        self.stops = np.empty(0, np.int64)
        edit(self, row)

    patch.setattr(SamplingState, "edit", early)


def min_p_is_forgotten(patch: Patch) -> None:
    settings = Sampler._settings

    def forget(self: Sampler, states: Any) -> Any:
        numbers, keys = settings(self, states)
        return np.ascontiguousarray(numbers * [1, 1, 1, 0]), keys

    patch.setattr(Sampler, "_settings", forget)


def the_draw_forgets_its_place(patch: Patch) -> None:
    settings = Sampler._settings

    def forget(self: Sampler, states: Any) -> Any:
        numbers, keys = settings(self, states)
        keys[:, 2] = 0
        return numbers, keys

    patch.setattr(Sampler, "_settings", forget)


TELLING: dict[str, Any] = {
    "temperature": 1.1,
    "min_p": 0.01,
    "repetition_penalty": 1.7,
    "presence_penalty": 0.5,
    "frequency_penalty": 1.0,
    "logit_bias": {5: 6.0, 8: 7.0, 9: 9.0, 600: 7.0, 12: 8.0, 13: 5.0, 650: 5.0},
    "min_tokens": 1000,
    "bad_words": "x",
}
"""Tokens of prompt, answer, bad words and the end are likely enough to tell."""
FAULTS = [
    the_bias_comes_after_the_penalties,
    the_penalties_come_twice,
    a_token_of_the_prompt_counts_as_generated,
    only_the_last_token_counts,
    a_bad_word_is_matched_by_its_last_token_alone,
    stop_tokens_come_before_min_tokens,
    min_p_is_forgotten,
    the_draw_forgets_its_place,
]


@pytest.mark.parametrize("plant", FAULTS, ids=lambda plant: plant.__name__)
def test_a_planted_fault_breaks_the_law(plant: Any, monkeypatch: Patch) -> None:
    assert law(TELLING) > 1e-3
    plant(monkeypatch)
    assert law(TELLING) < 1e-3
