"""`cleave bench` from the command line, small; no figure is judged, since the machine may be busy."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner

from cleave import LLM, SamplingParams
from cleave.__main__ import application
from cleave.errors import BenchError, EngineError, RequestError
from cleave.export.artifact import Artifact
from cleave.kvcache.step import Chunk
from cleave.runtime.bench.counts import ModelShape
from cleave.runtime.bench.machine import command
from cleave.runtime.bench.published import BATCHES
from cleave.runtime.bench.ranges import Range
from cleave.runtime.bench.tables import notes, throughput_table
from cleave.runtime.bench.throughput import ThroughputRequest, Workload, least_work, run_throughput
from cleave.runtime.request import Completion


def cleave(*arguments: object) -> Any:
    return CliRunner().invoke(application(), ["bench", *map(str, arguments)])


def figures(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text())
    assert set(found) == {"command", "date", "machine", "versions", "figures"}
    return found["figures"]


def test_latency(artifact: Callable[[str], Path], tmp_path: Path) -> None:
    out, plot = tmp_path / "latency.json", tmp_path / "latency.png"
    options = ["--prompt", 8, "--output", 3, "--repetitions", 1, "--json", out, "--plot", plot]
    result = cleave("latency", artifact("gqa"), "--batch", "2,1", *options)
    assert result.exit_code == 0, result.output
    assert [(row["phase"], row["batch"]) for row in figures(out)["rows"]] == [
        ("prefill", 1),
        ("decode", 1),
        ("prefill", 2),
        ("decode", 2),
    ]
    assert all(row["percent_of_limit"] > 0 for row in figures(out)["rows"])
    assert set(figures(out)["limits"]["operations_per_s"]) == {"float32", "int8"}
    assert "limits," in result.output
    assert "fit the cache" in result.output
    assert plot.stat().st_size > 1000


def test_kvrun_has_the_rows_of_the_published_table(artifact: Callable[[str], Path], tmp_path: Path) -> None:
    result = cleave("kvrun", artifact("gqa"), "--json", tmp_path / "kvrun.json")
    assert result.exit_code == 0, result.output
    found = figures(tmp_path / "kvrun.json")
    expected = [(phase, batch) for phase in ("prefill", "decode") for batch in BATCHES]
    assert [(row["phase"], row["batch"]) for row in found["rows"]] == expected
    for card in found["published"]["cards"]:
        assert [(row["step"], row["batch"]) for row in card["rows"]] == expected
        assert all(row["flashinfer"] < row["limit_tokens_per_s"] for row in card["rows"])


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments",
    [
        ["latency", "--batch", "1,2", "--prompt", 8, "--output", 3, "--repetitions", 1],
        ["kvrun"],
        ["throughput", "--requests", 3, "--prompt", "4:9", "--output", "2:5"],
    ],
    ids=lambda arguments: arguments[0],
)
def test_an_engine_with_a_device_takes_the_attention_that_it_can_hand_over_to(
    artifact: Callable[[str], Path], tmp_path: Path, arguments: list[object]
) -> None:
    """Not that of a machine without a GPU: tensors of torch do not go to the backend `cpu`."""
    name, *options = arguments
    out = tmp_path / "figures.json"
    found = [*options, "--engine", "inductor", "--device", "cpu", "--json", out]
    result = cleave(name, artifact("one_layer"), *found)
    assert result.exit_code == 0, result.output
    assert {key: figures(out)[key] for key in ("engine", "attention")} == {
        "engine": "inductor",
        "attention": "reference",
    }


def test_throughput_counts_tokens_prefix_hits_and_preemptions(artifact: Callable[[str], Path]) -> None:
    request = ThroughputRequest(
        artifact("gqa"), 12, Range(5, 20), Range(3, 9), shared_prefix=48, max_sequences=4
    )
    found = run_throughput(request)
    workload = Workload.draw(request, 301)
    assert found["prompt_tokens"] == sum(map(len, workload.prompts))
    assert found["output_tokens"] == sum(workload.outputs)
    assert found["cached_tokens"] >= 8 * 48  # those that came after the first four had the prefix
    assert found["preemptions"] == 0
    assert found["requests_per_s"] == pytest.approx(12 / found["seconds"])
    for disturbed, star in ((True, 1), (False, 0)):  # a star in the table is one below it, and the other way
        row = found | {"disturbed": disturbed}
        shown = io.StringIO()
        Console(file=shown).print(throughput_table(row))
        assert shown.getvalue().count("*") == star
        assert "".join(notes(row)).count("*") == star


def test_a_small_cache_preempts(artifact: Callable[[str], Path]) -> None:
    page = 3 * 2 * 32 * 4 * 16
    request = ThroughputRequest(artifact("gqa"), 6, Range(20, 20), Range(60, 60), kv_cache_bytes=12 * page)
    assert run_throughput(request)["preemptions"] > 0


def test_the_least_work_of_a_run_is_that_of_its_requests(artifact: Callable[[str], Path]) -> None:
    shape = ModelShape.of(Artifact.open(artifact("gqa")))
    done = Completion(None, (1,) * 6, "", (2, 3, 4), "length", cached_tokens=2)
    work = least_work(shape, [done], steps=3, item=4)
    assert work.weight_bytes == 3 * shape.step_parameters * 4
    chunks = [Chunk(0, 2, 4), Chunk(0, 6, 1), Chunk(0, 7, 1)]
    parts = [shape.work([chunk], 1, weight_item=4, kv_item=4) for chunk in chunks]
    assert work.kv_read_bytes == sum(part.kv_read_bytes for part in parts)
    assert work.operations == sum(part.operations for part in parts)


def test_each_prompt_may_have_its_own_params(artifact: Callable[[str], Path]) -> None:
    params = [SamplingParams(max_tokens=count, ignore_eos=True) for count in (2, 5)]
    with LLM(artifact("gqa")) as llm:
        answers = llm.generate([[1, 2], [3, 4]], params)
        assert [len(answer.token_ids) for answer in answers] == [2, 5]
        with pytest.raises(RequestError, match="3 prompts and 2 params"):
            llm.generate([[1], [2], [3]], params)


@pytest.mark.parametrize(
    ("arguments", "error", "says"),
    [
        (["latency", "ARTIFACT", "--batch", "0"], BenchError, "--batch is '0'"),
        (["latency", "ARTIFACT", "--prompt", "512"], BenchError, "context"),
        (["latency", "ARTIFACT", "--prompt", "8", "--output", "1"], BenchError, "output is 1"),
        (
            ["latency", "ARTIFACT", "--prompt", "8", "--output", "4", "--engine", "x"],
            EngineError,
            "kinds are",
        ),
        (
            ["kvrun", "ARTIFACT", "--engine", "inductor", "--device", "tpu"],
            EngineError,
            "device is 'tpu'; give cpu or cuda, or leave it away",
        ),
        (["latency", "ARTIFACT", "--plot", "x.gif"], BenchError, "must end in"),
        (["latency", "ARTIFACT", "--json", "nowhere/x.json"], BenchError, "there is no folder"),
        (["throughput", "ARTIFACT"], BenchError, "a request may have 2048 tokens"),
        (["throughput", "ARTIFACT", "--prompt", "9:3"], BenchError, "--prompt is '9:3'"),
        (["throughput", "ARTIFACT", "--requests", "0", "--prompt", "3"], BenchError, "requests is 0"),
        (["serve", "--url", "http://127.0.0.1:1", "--rate", "x"], BenchError, "--rate is 'x'"),
        (["serve", "--url", "http://127.0.0.1:1", "--api", "x"], BenchError, "--api is 'x'"),
        (["serve", "--url", "http://127.0.0.1:1", "--requests", "1"], BenchError, "no server answers at"),
        (["serve", "--url", "http://x", "--tokenizer", "nowhere"], BenchError, "is not a tokenizer.json"),
    ],
)
def test_bad_input_is_one_sentence(
    arguments: list[str], error: type[Exception], says: str, artifact: Callable[[str], Path]
) -> None:
    given = [artifact("gqa") if argument == "ARTIFACT" else argument for argument in arguments]
    result = cleave(*given)
    assert isinstance(result.exception, error), result.output
    assert says in str(result.exception)
    assert result.output == ""  # no bar, not even an empty line of one


def test_a_missing_http_client_is_one_sentence_with_its_install_line() -> None:
    code = (
        "import sys; sys.modules['httpx'] = None; sys.argv = ['cleave', 'bench', 'serve', '--url', 'http://x'];"
        "from cleave.__main__ import main; main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("error: `cleave bench serve` needs httpx: pip install ")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "typed"),
    [
        (["/somewhere/bin/cleave", "bench", "latency"], "cleave bench latency"),
        (["/somewhere/cleave/__main__.py", "bench"], "cleave bench"),
        (["benchmarks/split_tax.py", "--batch", "1"], "python benchmarks/split_tax.py --batch 1"),
    ],
)
def test_a_result_names_the_command_as_one_types_it(arguments: list[str], typed: str) -> None:
    assert command(arguments) == typed
