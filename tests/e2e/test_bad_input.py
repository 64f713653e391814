"""Bad input from the command line and to the LLM: one sentence, exit code 2, a CleaveError from Python."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from command import assert_one_sentence, cleave, contents, process
from damage import alter_byte, copy_of

from cleave import LLM, SamplingParams
from cleave.errors import AttentionError, CleaveError, EngineError, RequestError
from cleave.export.families import SUPPORTED
from cleave.export.manifest import DTYPES, PARTS
from cleave.kvcache.backend import backend_names
from cleave.runtime.engines.kinds import engine_kinds

CONTEXT, VOCABULARY = 512, 301
SHORT = SamplingParams(max_tokens=4, ignore_eos=True)


@pytest.fixture(scope="module")
def llm(artifact: Callable[[str], Path]) -> Iterator[LLM]:
    with LLM(artifact("one_layer")) as loaded:
        yield loaded


@pytest.fixture(autouse=True)
def _nothing_is_kept(request: pytest.FixtureRequest) -> Iterator[None]:
    """Whatever is refused leaves the LLM as it was: all pages free, and the same answers as before."""
    yield
    if "llm" in request.fixturenames:
        llm: LLM = request.getfixturevalue("llm")
        assert llm.model.attention.free_pages == llm.model.attention.num_pages
        assert llm.generate([[1, 2, 3]], SHORT)[0].finish_reason == "length"


def refuse(act: Callable[[], object], *words: str, kind: type[CleaveError] = RequestError) -> None:
    with pytest.raises(kind) as refused:
        act()
    assert_one_sentence(str(refused.value), "", *words)


# Prompts.


@pytest.mark.parametrize("prompt", ["", [], (), np.array([], np.int64), [[]], [""], ["San", ""], [[1], []]])
def test_an_empty_prompt(llm: LLM, prompt: Any) -> None:
    prompts = [prompt] if len(prompt) == 0 else prompt
    refuse(lambda: llm.generate(prompts, SHORT), "the prompt is empty")


def test_no_prompts_at_all_give_no_answers(llm: LLM) -> None:
    assert llm.generate([], SHORT) == []
    assert llm.generate([], []) == []


@pytest.mark.parametrize("token", [VOCABULARY, -1, 10**9, 2**64, np.int64(VOCABULARY)])
def test_a_token_out_of_the_vocabulary(llm: LLM, token: int) -> None:
    words = (f"token id {token}", "vocabulary", f"0 to {VOCABULARY - 1}")
    refuse(lambda: llm.generate([[1, token, 2]], SHORT), *words)
    refuse(lambda: llm.generate([1, token, 2], SHORT), *words)
    refuse(lambda: list(llm.stream([token], SHORT)), *words)


@pytest.mark.parametrize("token", [1.0, True, None, "1", np.float32(1), np.True_, [1], torch.tensor(1.5)])
def test_a_token_that_is_no_integer(llm: LLM, token: Any) -> None:
    refuse(lambda: llm.generate([[1, token, 2]], SHORT), "token id", "is not an integer")


@pytest.mark.parametrize(
    "prompts", [5, None, b"abc", 1.5, [b"abc"], [1, "a"], [None, [1]], [{1: 2}, 3]], ids=str
)
def test_what_is_no_prompt(llm: LLM, prompts: Any) -> None:
    refuse(lambda: llm.generate(prompts, SHORT))


@pytest.mark.parametrize(
    "prompt",
    [
        np.array([5, 6, 7]),
        np.array([5, 6, 7], np.uint8),
        [np.int32(5), np.int64(6), 7],
        torch.tensor([5, 6, 7]),
        (5, 6, 7),
        range(5, 8),
    ],
    ids=lambda prompt: type(prompt).__name__,
)
def test_integers_of_other_libraries_are_tokens(llm: LLM, prompt: Any) -> None:
    (expected,) = llm.generate([[5, 6, 7]], SHORT)
    for given in (prompt, [prompt]):
        assert llm.generate(given, SHORT) == [expected]
    (chunk, *_) = llm.stream(prompt, SHORT)
    assert chunk.token_ids == expected.token_ids[: len(chunk.token_ids)]
    assert all(type(token) is int for token in expected.prompt_token_ids)


def test_texts_where_one_prompt_is_wanted(llm: LLM) -> None:
    texts: Any = ["San Francisco", "Paris"]
    refuse(lambda: llm.stream(texts, SHORT), "one prompt", "list of texts")


@pytest.mark.parametrize("params", [{"max_tokens": 4}, 4, "max_tokens=4", [{"max_tokens": 4}]], ids=str)
def test_what_are_no_params(llm: LLM, params: Any) -> None:
    refuse(lambda: llm.generate(["San"], params), "SamplingParams")
    refuse(lambda: llm.stream("San", params), "SamplingParams")
    refuse(lambda: llm.check("San", params), "SamplingParams")


def test_rows_of_a_matrix_are_prompts(llm: LLM) -> None:
    rows = [[5, 6], [7, 8]]
    assert llm.generate(np.array(rows), SHORT) == llm.generate(rows, SHORT)
    assert llm.generate(torch.tensor(rows), SHORT) == llm.generate(rows, SHORT)


def test_text_that_is_no_text(llm: LLM) -> None:
    refuse(lambda: llm.generate("caf\udce9", SHORT), "caf", "UTF-8")


def test_a_text_with_tokens_that_the_embedding_lacks(artifact: Callable[[str], Path]) -> None:
    from cleave.runtime.tokenizer import Tokenizer

    tokenizer = Tokenizer(artifact("one_layer") / "tokenizer.json", 40)
    refuse(lambda: tokenizer.encode("zz"), "out of the vocabulary", "0 to 39")


@pytest.mark.parametrize("length", [CONTEXT, CONTEXT + 1, 5 * CONTEXT])
def test_a_prompt_longer_than_the_context(llm: LLM, length: int) -> None:
    refuse(lambda: llm.generate([[1] * length], SHORT), f"{length} tokens", f"context of {CONTEXT}")
    refuse(lambda: llm.generate("a" * length, SHORT), f"{length} tokens", f"context of {CONTEXT}")


def test_a_prompt_that_just_fits_gets_one_token(llm: LLM) -> None:
    (answer,) = llm.generate([[1] * (CONTEXT - 1)], SHORT)
    assert (len(answer.token_ids), answer.finish_reason) == (1, "length")


def test_one_bad_prompt_stops_the_batch_before_anything_runs(llm: LLM) -> None:
    steps = llm.model.attention.steps
    refuse(lambda: llm.generate([[1], [2], [VOCABULARY]], SHORT))
    assert llm.model.attention.steps == steps


def test_a_request_that_needs_more_pages_than_there_are(artifact: Callable[[str], Path]) -> None:
    with LLM(artifact("one_layer"), page_size=16) as probe:
        page = probe.model.page_bytes
    with LLM(artifact("one_layer"), kv_cache_bytes=4 * page, page_size=16) as small:
        have, most = f"{4 * page / 2**20:.1f} MiB", 64 - 10 + 1
        need = f"{5 * page / 2**20:.1f} MiB"
        params = SamplingParams(max_tokens=most + 1, ignore_eos=True)
        words = (f"need {need}", f"there are {have}", f"max_tokens to {most} or less", "kv_cache_bytes")
        refuse(lambda: small.generate([[1] * 10], params), "65 cached tokens", *words)
        params = SamplingParams(max_tokens=most, ignore_eos=True)
        assert len(small.generate([[1] * 10], params)[0].token_ids) == most
        refuse(lambda: small.generate([[1] * 100], SHORT), "shorter prompt", "kv_cache_bytes")
        refuse(lambda: small.generate([[1] * 10]), f"max_tokens to {most} or less")


# Parameters.


@pytest.mark.parametrize("number", [0, -1, 2.5, "5", [5], float("nan")])
def test_max_tokens_that_is_no_count(number: Any) -> None:
    refuse(lambda: SamplingParams(max_tokens=number), "max_tokens", str(number))


def test_max_tokens_of_numpy_is_a_count(llm: LLM) -> None:
    (answer,) = llm.generate([[1]], SamplingParams(max_tokens=np.int64(3), ignore_eos=True))
    assert len(answer.token_ids) == 3


@pytest.mark.parametrize("number", [-0.1, "warm", True, float("nan"), float("inf")])
def test_a_temperature_that_is_not_there(number: Any) -> None:
    refuse(lambda: SamplingParams(temperature=number), "temperature", str(number))


def test_as_many_params_as_prompts(llm: LLM) -> None:
    refuse(lambda: llm.generate([[1], [2]], [SHORT]), "2 prompts", "1 params")


# Options.


@pytest.mark.parametrize(
    ("options", "words", "kind"),
    [
        ({"engine": "tensorrt_llm"}, ("tensorrt_llm", *engine_kinds()), EngineError),
        ({"engine": ""}, engine_kinds(), EngineError),
        ({"attention": "paged"}, ("paged", *backend_names()), AttentionError),
        ({"device": "tpu"}, ("'tpu'", "cpu"), EngineError),
        ({"engine": "onnxruntime", "device": "cuda:0"}, ("'cuda:0'", "inductor"), EngineError),
        ({"threads": 0}, ("threads is 0",), EngineError),
        ({"threads": 1.5}, ("threads is 1.5",), EngineError),
        ({"max_sequences": 0}, ("max_sequences is 0",), EngineError),
        ({"max_tokens_per_step": -1}, ("max_tokens_per_step is -1",), EngineError),
        ({"page_size": 0}, ("page_size is 0",), EngineError),
        ({"page_size": "16"}, ("page_size is '16'",), EngineError),
        ({"kv_cache_bytes": 1}, ("kv_cache_bytes is 1", "one page of 16"), EngineError),
        ({"max_model_len": CONTEXT + 1}, (f"{CONTEXT + 1}", f"{CONTEXT} tokens"), EngineError),
    ],
    ids=str,
)
def test_options_that_are_not_allowed(
    artifact: Callable[[str], Path], options: dict[str, Any], words: tuple[str, ...], kind: type[CleaveError]
) -> None:
    refuse(lambda: LLM(artifact("one_layer"), **options), *words, kind=kind)


def test_names_are_looked_at_before_digests(artifact: Callable[[str], Path]) -> None:
    def compared(*_: object) -> None:
        raise AssertionError("a file was read")

    for options in ({"engine": "tensorrt_llm"}, {"attention": "paged"}):
        with pytest.raises(CleaveError):
            LLM(artifact("one_layer"), progress=compared, **options)


# The commands, in this process.


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--model", "no/such/place"), ("there is no artifact at no/such/place",)),
        (("--model", "{checkpoint}"), ("looks like a checkpoint", "cleave export")),
        (("--model", "{artifact}", "--engine", "tensorrt_llm"), ("tensorrt_llm", *engine_kinds())),
        (("--model", "{artifact}", "--attention", "paged"), ("paged", *backend_names())),
        (("--model", "{artifact}", "--max_new_tokens", "0"), ("--max_new_tokens is 0",)),
        (("--model", "{artifact}", "--device", "tpu"), ("'tpu'", "cpu")),
        (("--model", "{artifact}", "--chat"), ("no chat template", "leave --chat out")),
        (("--model", "{artifact}", "--threads", "0"), ("threads is 0",)),
        (("--model", "no/such/place", "--threads", "99999"), ("threads is 99999", "give at most")),
        (("--model", "{artifact}", "--input", ""), ("the prompt is empty",)),
        (("--model", "{artifact}", "--input", "a", "--input", ""), ("the prompt is empty",)),
        (("--model", "{artifact}", "--input", "a" * 600), ("600 tokens", "context of 512")),
        (("--model", "{artifact}", "--input", "\udcff"), ("UTF-8",)),
        (("--model", "{altered}"), ("weights.safetensors", "altered")),
    ],
    ids=lambda value: " ".join(value)[:50],
)
def test_cleave_run(
    checkpoint: Callable[[str], Path],
    artifact: Callable[[str], Path],
    tmp_path: Path,
    options: tuple[str, ...],
    words: tuple[str, ...],
) -> None:
    known = {"checkpoint": checkpoint("one_layer"), "artifact": artifact("one_layer"), "altered": tmp_path}
    alter_byte(copy_of(known["artifact"], tmp_path) / "weights.safetensors")
    cleave("run", *(option.format(**known) for option in options)).refused(*words)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--model", "no/such/place"), ("there is no model directory no/such/place",)),
        (("--model", "{artifact}"), ("is not a checkpoint", "artifact")),
        (("--model", "{checkpoint}", "--export", "lm_head"), ("lm_head", *PARTS)),
        (("--model", "{checkpoint}", "--dtype", "int4"), ("int4", *DTYPES)),
        (("--model", "{checkpoint}", "--device", "tpu"), ("tpu", "cpu", "cuda")),
        (("--model", "{checkpoint}", "--num_layers", "0"), ("num_layers is 0", "1 layers")),
        (("--model", "{checkpoint}", "--num_layers", "-1"), ("num_layers is -1", "1 layers")),
        (("--model", "{checkpoint}", "--num_layers", "2"), ("num_layers is 2", "1 layers")),
        (("--model", "{checkpoint}", "--test", "--dtype", "int4"), ("int4", *DTYPES)),
        (("--model", "{checkpoint}", "--test", "--device", "tpu"), ("tpu", "cpu", "cuda")),
        (("--model", "{checkpoint}", "--test", "--num_layers", "2"), ("num_layers is 2",)),
        (("--model", "{checkpoint}", "--test", "--input", ""), ("--input is empty",)),
        (("--model", "{checkpoint}", "--test", "--max_new_tokens", "0"), ("max_new_tokens is 0",)),
        (("--model", "no/such/place", "--test"), ("there is no model directory",)),
    ],
    ids=lambda value: " ".join(value)[:50],
)
def test_cleave_export(
    checkpoint: Callable[[str], Path],
    artifact: Callable[[str], Path],
    tmp_path: Path,
    options: tuple[str, ...],
    words: tuple[str, ...],
) -> None:
    known = {"checkpoint": checkpoint("one_layer"), "artifact": artifact("one_layer")}
    output = tmp_path / "output"
    given = [option.format(**known) for option in options]
    cleave("export", "--output_dir", output, *given).refused(*words)
    assert contents(output) is None


def test_cleave_export_without_output_dir(checkpoint: Callable[[str], Path]) -> None:
    cleave("export", "--model", checkpoint("one_layer")).refused("--output_dir")


def test_cuda_without_a_gpu_is_said_at_once(
    checkpoint: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for extra in ((), ("--test",)):
        options = (
            "--model",
            checkpoint("one_layer"),
            "--output_dir",
            tmp_path / "output",
            "--device",
            "cuda",
        )
        cleave("export", *options, *extra).refused("cuda", "no GPU", "--device cpu")
    assert contents(tmp_path / "output") is None


def test_an_interruption_has_its_own_exit_code(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("cleave.runtime.cli.LLM", interrupted)
    ended = cleave("run", "--model", "x")
    assert ended.code == 130
    assert ended.err == "\ninterrupted\n"


THROUGHPUT = ("bench", "throughput", "--requests", 1, "--prompt", 4, "--output", 2)


@pytest.mark.parametrize("verb", [("serve", "--port", 0), THROUGHPUT], ids=lambda verb: verb[0])
def test_the_kv_cache_may_have_a_unit(artifact: Callable[[str], Path], verb: tuple[object, ...]) -> None:
    folder = artifact("one_layer")
    refused = cleave(*verb, folder, "--kv_cache_bytes", "10Gigs")
    refused.refused("kv_cache_bytes is '10Gigs'", "give a number of bytes, or", "such as 24GiB")
    for amount, count in (("0.001KiB", 1), ("1KB", 1000), ("64", 64)):
        refused = cleave(*verb, folder, "--kv_cache_bytes", amount)
        assert refused.code == 2
        assert f"error: kv_cache_bytes is {count}; one page of 16 tokens needs" in refused.err


# The commands, as processes of their own.

CLEAVE = ("-m", "cleave")


def test_python_m_cleave_run() -> None:
    process([*CLEAVE, "run", "--model", "no/such/place"]).refused("there is no artifact at no/such/place")


def test_a_terminal_that_lacks_a_character_is_no_error(artifact: Callable[[str], Path]) -> None:
    options = ("--input", "caf\xe9", "--max_new_tokens", 1, "--ignore_eos")
    ended = process([*CLEAVE, "run", "--model", artifact("one_layer"), *options], PYTHONIOENCODING="ascii")
    assert ended.code == 0, ended
    assert ended.out.startswith("caf?")


def test_scripts_run_llama2(checkpoint: Callable[[str], Path]) -> None:
    process(["scripts/run_llama2.py", "--model", checkpoint("one_layer")]).refused("looks like a checkpoint")


def test_scripts_export_llama2(checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    model = copy_of(checkpoint("one_layer"), tmp_path / "model")
    text = (model / "config.json").read_text()
    (model / "config.json").write_text(text.replace("LlamaForCausalLM", "MixtralForCausalLM"))
    options = ("--model", model, "--output_dir", tmp_path / "output")
    process(["scripts/export_llama2.py", *options]).refused("mixture of experts", *SUPPORTED)
    assert contents(tmp_path / "output") is None


def test_python_m_cleave_export_with_damaged_weights(
    checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    """Far enough in for the libraries to have had their chance to print warnings."""
    model = copy_of(checkpoint("one_layer"), tmp_path / "model")
    with (model / "model.safetensors").open("r+b") as file:
        file.truncate(file.seek(0, 2) - 1)
    options = ("--model", model, "--output_dir", tmp_path / "output")
    process([*CLEAVE, "export", *options]).refused("model.safetensors", "cut short")
    assert contents(tmp_path / "output") is None


def test_a_hub_that_cannot_be_reached_is_one_sentence_soon(tmp_path: Path) -> None:
    """Nobody listens on port 9 of this machine; what takes seconds here is importing torch."""
    began = time.monotonic()
    options = ("--model", "nobody/nothing", "--output_dir", tmp_path / "output")
    offline = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path / "cache")}
    process([*CLEAVE, "export", *options], **offline).refused("nobody/nothing", "Hugging Face hub")
    assert time.monotonic() - began < 60
    assert contents(tmp_path / "output") is None
