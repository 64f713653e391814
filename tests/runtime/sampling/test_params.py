"""What may be asked for: every value out of range is refused by name, before anything runs."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cleave import LLM, SamplingParams
from cleave.errors import ArtifactError, RequestError
from cleave.export.exporter import ExportRequest, export
from cleave.runtime.sampling.state import SamplingState
from cleave.runtime.sampling_params import SamplingDefaults
from cleave.runtime.sequence import Sequence
from cleave.runtime.structured.params import StructuredOutput

NAN, INF = math.nan, math.inf
NUMBERS = ("1", True, NAN, INF, -INF, [1.0], 1j)
COUNTS = (1.5, "3", True, NAN, [2])

BAD: dict[str, tuple[Any, ...]] = {
    "temperature": (*NUMBERS, -0.01),
    "top_k": (*COUNTS, -2),
    "top_p": (*NUMBERS, 0, 0.0, -0.1, 1.01),
    "min_p": (*NUMBERS, -0.1, 1.5),
    "repetition_penalty": (*NUMBERS, 0, -1, 1.6e-157, 0.009, 100.1, 1e300),
    "presence_penalty": (*NUMBERS, None, -2.5, 2.01),
    "frequency_penalty": (*NUMBERS, None, -2.5, 2.01),
    "seed": (*COUNTS, 2**64, -(2**63) - 1),
    "max_tokens": (*COUNTS, 0, -1),
    "min_tokens": (*COUNTS, None, -1),
    "stop": (5, b"x", "", ["a", ""], [3], ["x"] * 17, "x" * 257, {"a": 1}, ["\ud800"]),
    "include_stop_str_in_output": (1, None, "yes"),
    "stop_token_ids": ("ab", 3, [1.5], [-1], [True], {1: 2}),
    "ignore_eos": (1, None, "yes"),
    "logprobs": (*COUNTS, -1, 21),
    "prompt_logprobs": (*COUNTS, -1, 21),
    "n": (*COUNTS, None, 0, 1025),
    "logit_bias": ([1], "x", {1: "a"}, {1: NAN}, {1: 101}, {-1: 1.0}, {"a": 1.0}, {1.5: 1.0}, {1: True}),
    "allowed_token_ids": ([], "ab", 3, [1.5], [-1]),
    "structured": ("[a-z]", {"regex": "x"}, True),
    "bad_words": (5, [""], "x" * 257, ["x"] * 1025, [b"a"]),
}
CASES = [(name, value) for name, values in BAD.items() for value in values]


@pytest.mark.parametrize(("name", "value"), CASES, ids=[f"{name}={value!r:.20}" for name, value in CASES])
def test_a_value_out_of_range_is_refused_by_name_with_what_is_allowed(name: str, value: Any) -> None:
    with pytest.raises(RequestError) as refused:
        SamplingParams(**{name: value})
    text = str(refused.value)
    assert name in text
    assert "\n" not in text
    assert "must be" in text or "at most" in text or "at least" in text or "give a value" in text
    assert len(text) < 250


def test_what_is_said_of_infinity_is_true() -> None:
    with pytest.raises(RequestError, match="temperature is inf; it must be a finite number at least 0"):
        SamplingParams(temperature=math.inf)


def test_min_tokens_may_not_exceed_max_tokens() -> None:
    with pytest.raises(RequestError, match="min_tokens is 5; it must be at most max_tokens, which is 4"):
        SamplingParams(min_tokens=5, max_tokens=4)


def test_numbers_of_numpy_are_numbers() -> None:
    params = SamplingParams(
        temperature=np.float32(0.5),
        top_k=np.int32(4),
        top_p=np.float64(0.9),
        seed=np.uint64(2**64 - 1),
        max_tokens=np.int64(3),
        logit_bias={np.int64(3): np.float32(1.5)},
        stop_token_ids=np.array([1, 2]),
        allowed_token_ids=(token for token in (4, 5)),  # type: ignore[arg-type]
    )
    assert params.temperature == 0.5
    assert type(params.temperature) is float
    assert (params.top_k, params.seed, params.logit_bias) == (4, 2**64 - 1, {3: 1.5})
    assert (params.stop_token_ids, params.allowed_token_ids) == ((1, 2), (4, 5))


def test_one_string_is_a_list_of_one() -> None:
    params = SamplingParams(stop="\n\n", bad_words=["a", "b"])
    assert (params.stop, params.bad_words) == (("\n\n",), ("a", "b"))


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(logit_bias={301: 1.0}),
        SamplingParams(allowed_token_ids=[3, 301]),
        SamplingParams(stop_token_ids=[10**9]),
    ],
)
def test_tokens_out_of_the_vocabulary_are_refused_before_anything_runs(
    artifact: Callable[[str], Path], params: SamplingParams
) -> None:
    with LLM(artifact("gqa")) as llm:
        with pytest.raises(RequestError, match=r"out of the vocabulary; ids go from 0 to 300"):
            llm.generate([[1], [2]], [SamplingParams(), params])
        assert llm.model.attention.steps == 0


# What the checkpoint says.


@pytest.mark.parametrize(
    ("config", "defaults"),
    [
        ({}, SamplingDefaults()),
        ({"temperature": 0.6, "top_p": 0.9}, SamplingDefaults(top_p=0.9)),
        ({"do_sample": False, "temperature": 0.6}, SamplingDefaults()),
        ({"do_sample": True}, SamplingDefaults(temperature=1.0)),
        (
            {"do_sample": True, "temperature": 0.6, "top_p": 0.9, "top_k": 40, "min_p": None},
            SamplingDefaults(temperature=0.6, top_p=0.9, top_k=40),
        ),
        ({"repetition_penalty": 1.05, "max_length": 20}, SamplingDefaults(repetition_penalty=1.05)),
    ],
)
def test_defaults_of_a_generation_config(config: dict[str, Any], defaults: SamplingDefaults) -> None:
    assert SamplingDefaults.from_generation_config(config) == defaults


def test_what_is_given_is_not_taken_from_the_checkpoint() -> None:
    defaults = SamplingDefaults(0.6, 40, 0.9, 0.1, 1.1)
    assert SamplingParams().resolved(defaults) == SamplingParams(
        temperature=0.6, top_k=40, top_p=0.9, min_p=0.1, repetition_penalty=1.1
    )
    given = SamplingParams(temperature=0, top_k=0, top_p=1, min_p=0, repetition_penalty=1)
    assert given.resolved(defaults) == given


@pytest.mark.parametrize("config", [{"temperature": "hot"}, {"top_p": 7}, {"do_sample": True, "top_k": 1.5}])
def test_a_damaged_generation_config_is_named(config: dict[str, Any]) -> None:
    with pytest.raises(ArtifactError, match=r"generation_config.json is damaged: t"):
        SamplingDefaults.from_generation_config(config)


def test_the_checkpoint_decides_where_a_request_does_not(
    checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    shutil.copytree(checkpoint("one_layer"), tmp_path / "checkpoint")
    file = tmp_path / "checkpoint" / "generation_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"do_sample": True, "temperature": 9.0}))
    export(ExportRequest(str(tmp_path / "checkpoint"), tmp_path / "sampled", check=False))
    with LLM(tmp_path / "sampled") as llm:
        answers = llm.generate([[7]] * 5, SamplingParams(max_tokens=8))
        greedy = llm.generate([[7]] * 5, SamplingParams(max_tokens=8, temperature=0))
    assert len({answer.token_ids for answer in answers}) == 5
    assert len({answer.token_ids for answer in greedy}) == 1


# What the parameters do, end to end.


def test_min_tokens_stop_token_ids_and_ignore_eos(artifact: Callable[[str], Path]) -> None:
    with LLM(artifact("gqa")) as llm:
        bias = {"logit_bias": {257: 100.0}, "max_tokens": 6}
        (ended,) = llm.generate([[5]], SamplingParams(**bias))
        assert (ended.token_ids, ended.finish_reason) == ((257,), "stop")
        (later,) = llm.generate([[5]], SamplingParams(min_tokens=3, **bias))
        assert later.token_ids[-1] == 257
        assert (len(later.token_ids), later.finish_reason) == (4, "stop")
        assert 257 not in later.token_ids[:3]
        (on,) = llm.generate([[5]], SamplingParams(ignore_eos=True, **bias))
        assert (on.token_ids, on.finish_reason) == ((257,) * 6, "length")
        only = {"allowed_token_ids": [9], "max_tokens": 4}
        (nine,) = llm.generate([[5]], SamplingParams(stop_token_ids=[9], **only))
        assert (nine.token_ids, nine.finish_reason) == ((9,), "stop")


def test_a_request_that_leaves_no_token_ends_with_the_reason_and_others_go_on(
    artifact: Callable[[str], Path], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("CRITICAL", "cleave")
    none = SamplingParams(allowed_token_ids=[9], min_tokens=2, stop_token_ids=[9], max_tokens=3)
    with LLM(artifact("gqa")) as llm:
        good, bad = llm.generate([[5], [6]], [SamplingParams(max_tokens=3), none])
        assert llm.generate([[5]], SamplingParams(max_tokens=3)) == [good]
    assert bad.finish_reason == "error"
    assert "no token is left" in str(bad.error)


def test_a_bad_word_never_comes(demo_artifact: Path) -> None:
    prompt = "San Francisco is a"
    with LLM(demo_artifact) as llm:
        (plain,) = llm.generate([prompt], SamplingParams(max_tokens=20))
        (without,) = llm.generate([prompt], SamplingParams(max_tokens=20, bad_words=["city", "California"]))
    assert "city" in plain.text
    assert "California" in plain.text
    assert "city" not in without.text
    assert "California" not in without.text


def test_without_a_seed_every_request_has_its_own() -> None:
    params = SamplingParams(temperature=1.0).resolved(SamplingDefaults())
    assert len({SamplingState(params, [1], 10).key for _ in range(20)}) == 20


def test_a_structured_answer_ends_when_it_is_complete(artifact: Callable[[str], Path]) -> None:
    choice = StructuredOutput(choice=["yes", "no", "maybe"])
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
    whole = StructuredOutput(json_schema=schema | {"additionalProperties": False})
    sampled: dict[str, Any] = {"temperature": 1.0, "max_tokens": 300}
    with LLM(artifact("gqa")) as llm:
        hot = SamplingParams(structured=choice, temperature=1e3, min_tokens=9)
        answers = llm.generate([[5]] * 40, hot)
        assert {answer.text for answer in answers} == {"yes", "no", "maybe"}
        assert {answer.finish_reason for answer in answers} == {"stop"}
        for answer in llm.generate([[6]] * 8, SamplingParams(structured=whole, **sampled)):
            assert answer.finish_reason in ("stop", "length")
            if answer.finish_reason == "stop":
                assert list(json.loads(answer.text)) == ["a"]


def test_a_grammar_that_fails_on_a_token_ends_its_request_alone() -> None:
    class Broken:
        is_complete = False

        def mask(self) -> Any:
            return np.full(1, 0xFFFFFFFF, np.uint32)

        def accept(self, token: int) -> None:
            raise RequestError(f"token {token} is too much")

    params = SamplingParams(temperature=1.0).resolved(SamplingDefaults())
    sequence = Sequence(0, (1,), 5, frozenset(), sampling=SamplingState(params, [1], 10, constraint=Broken()))
    sequence.append(4)
    assert (sequence.finish_reason, sequence.error) == ("error", "token 4 is too much")
