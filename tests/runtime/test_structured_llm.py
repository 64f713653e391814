"""Structured output through the whole LLM: every answer is what was asked for, alone and in a crowd."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from cleave import LLM, SamplingParams, StructuredOutput
from cleave.errors import RequestError

SCHEMA = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "maxLength": 12},
        "kind": {"enum": ["capital", "town"]},
        "people": {"type": "integer", "minimum": 0, "maximum": 99999999},
    },
    "required": ["city", "kind", "people"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def llm(demo_artifact: Path) -> Iterator[LLM]:
    with LLM(demo_artifact) as loaded:
        yield loaded


def params(wanted: StructuredOutput, **others: Any) -> SamplingParams:
    return SamplingParams(structured=wanted, **({"max_tokens": 300} | others))


def test_json_of_a_schema(llm: LLM) -> None:
    compact = StructuredOutput(json_schema=SCHEMA, disable_any_whitespace=True)
    wanted = params(compact, temperature=1.5, seed=0, n=12)
    for answer in llm.generate("Paris is", wanted):
        assert answer.finish_reason == "stop"
        jsonschema.validate(json.loads(answer.text), SCHEMA)


@pytest.mark.parametrize("ignore_eos", [False, True])
def test_each_kind_in_one_batch(llm: LLM, ignore_eos: bool) -> None:
    kinds = {
        "regex": StructuredOutput(regex=r"\d{3}-[a-c]{2}"),
        "choice": StructuredOutput(choice=["Paris", "Rome", "東京 🎉"]),
        "grammar": StructuredOutput(grammar='start: "(" start ")" | "x"'),
        "json": StructuredOutput(json_object=True, disable_any_whitespace=True),
    }
    free = SamplingParams(max_tokens=20)
    wanted = [params(one, temperature=1.0, seed=7, ignore_eos=ignore_eos) for one in kinds.values()]
    prompts = ["The capital of France is"] * (len(kinds) + 1)
    answers = llm.generate(prompts, [*wanted, free])
    texts = dict(zip(kinds, answers, strict=False))
    assert re.fullmatch(r"\d{3}-[a-c]{2}", texts["regex"].text)
    assert texts["choice"].text in ("Paris", "Rome", "東京 🎉")
    assert texts["grammar"].finish_reason == "length" or re.fullmatch(r"\(*x\)*", texts["grammar"].text)
    assert texts["json"].finish_reason == "length" or isinstance(json.loads(texts["json"].text), dict)
    assert answers[-1].text == " Paris."
    alone = [llm.generate(prompts[0], one)[0] for one in wanted]
    assert alone == answers[:-1]


def test_preemption_changes_nothing(llm: LLM, demo_artifact: Path) -> None:
    compact = StructuredOutput(json_schema=SCHEMA, disable_any_whitespace=True)
    wanted = params(compact, temperature=1.2, seed=3, max_tokens=70)
    prompts = [f"{name} is" for name in ("Paris", "Rome", "Tokyo", "Ottawa")]
    expected = llm.generate(prompts, wanted)
    with LLM(demo_artifact, kv_cache_bytes=6 * llm.model.page_bytes) as small:
        assert small.generate(prompts, wanted) == expected
        assert small.stats().preemptions > 0


def test_a_schema_that_cannot_be_compiled_is_refused_before_anything_runs(llm: LLM) -> None:
    steps = llm.stats().steps
    with pytest.raises(RequestError, match="the regex cannot be compiled"):
        llm.generate("x", params(StructuredOutput(regex="(")))
    with pytest.raises(RequestError, match="structured is"):
        SamplingParams(structured={"regex": "x"})  # type: ignore[arg-type]
    assert llm.stats().steps == steps


def test_a_grammar_that_fails_on_the_way_ends_its_request_alone(
    llm: LLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    constraint = llm.model.grammars.constraint
    wanted = params(StructuredOutput(regex="[a-z ]{40,80}"), max_tokens=60)

    def failing(one: StructuredOutput) -> Any:
        made = constraint(one)
        accept, count = made.accept, iter(range(100))

        def later(token: int) -> None:
            if next(count) == 3:
                raise RequestError("the regex became too costly")
            accept(token)

        monkeypatch.setattr(made, "accept", later)
        return made

    monkeypatch.setattr(llm.model.grammars, "constraint", failing)
    failed, other = llm.generate(["x", "The capital of France is"], [wanted, SamplingParams(max_tokens=20)])
    assert (failed.finish_reason, failed.error) == ("error", "the regex became too costly")
    assert len(failed.token_ids) == 4
    assert other.text == " Paris."
    assert llm.stats().pages_used == 0
