"""The memory plan against what a loaded model takes, and the verb `cleave plan`."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from checkpoints import VARIANTS
from safetensors import safe_open
from typer.testing import CliRunner

from cleave.__main__ import application
from cleave.amounts import parse_kv_cache_bytes, parse_memory
from cleave.errors import ArtifactError, EngineError, PlanError
from cleave.export.manifest import DTYPES
from cleave.export.shape import ModelShape
from cleave.kvcache.backends import cpu_kernel
from cleave.kvcache.memory_plan import StepSize
from cleave.plan import plan_shape
from cleave.runtime.engines.kinds import KINDS
from cleave.runtime.model import Model
from cleave.runtime.model_options import ModelOptions, engine_options

GIB = 2**30


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_checkpoint_has_the_shape_of_its_artifact(
    variant: str, checkpoint: Callable[[str], Path], artifact: Callable[[str], Path]
) -> None:
    before, after = ModelShape.of(checkpoint(variant)), ModelShape.of(artifact(variant))
    for name in ("architecture", "dtype", "context", "hidden", "intermediate", "vocab", "parameters"):
        assert getattr(before, name) == getattr(after, name), name
    for spec, traced in zip(before.layers, after.layers, strict=True):
        for name in ("heads", "kv_heads", "head_dim", "scale", "window"):
            assert getattr(spec, name) == getattr(traced, name), name


@pytest.mark.parametrize("variant", ["gqa", "head_dim", "qwen2_mixed_windows", "qwen3"])
def test_a_loaded_model_has_the_pages_of_its_plan(variant: str, artifact: Callable[[str], Path]) -> None:
    folder = artifact(variant)
    shape = ModelShape.of(folder)
    plan = plan_shape(shape, 8 * 2**20, dtype="float32")
    model = Model(folder, ModelOptions(kv_cache_bytes=plan.kv_bytes))
    assert model.attention.num_pages == plan.pages
    assert model.page_bytes == plan.page_bytes
    allocated = keys = 0
    for layer in model.attention._backend._layers:
        keys += layer.arrays[0].nbytes
        allocated += layer.arrays[0].nbytes + layer.arrays[1].nbytes
    padding = cpu_kernel.padded(shape.layers[0].head_dim) / shape.layers[0].head_dim
    assert 2 * keys == plan.kv_bytes
    assert plan.kv_bytes <= allocated <= plan.kv_bytes * padding
    activations = sum(array.nbytes for array in model.engine._buffers._arrays.values())
    assert activations <= plan.activations
    model.close()


def test_weights_are_what_the_headers_sum_to(demo_artifact: Path) -> None:
    with safe_open(demo_artifact / "weights.safetensors", "numpy") as file:
        values = sum(file.get_tensor(name).size for name in file.keys())  # noqa: SIM118
    shape = ModelShape.of(demo_artifact)
    assert shape.parameters == values
    for dtype, item in zip(DTYPES, (4, 2, 2), strict=True):
        assert plan_shape(shape, GIB, dtype=dtype).weights == values * item


def test_the_parts_of_a_plan_add_up(demo_checkpoint: Path) -> None:
    shape = ModelShape.of(demo_checkpoint)
    plan = plan_shape(shape, GIB, max_model_len=1000)
    used = plan.weights + plan.activations + plan.kv_bytes
    assert plan.memory - plan.page_bytes < used <= plan.memory
    assert plan.kv_bytes_per_token == 2 * 6 * 2 * 64 * 2
    assert plan.tokens == plan.pages * 16
    assert plan.requests == plan.pages // 63


class Gpu:
    """The engine of a GPU start, of which only the free memory is asked."""

    device = "cuda:0"
    dtype = "bfloat16"

    def __init__(self, free: int) -> None:
        self._free = free

    def launch(self) -> None:
        raise AssertionError

    def free_memory(self) -> int:
        return self._free


@pytest.mark.parametrize("memory", [12 * 2**20, 40 * 2**20, 200 * 2**20, GIB, 80 * GIB])
@pytest.mark.parametrize(("length", "sequences"), [(64, 64), (1000, 3), (4096, 64)])
def test_a_start_on_a_gpu_makes_the_pages_of_its_plan(
    demo_checkpoint: Path, memory: int, length: int, sequences: int
) -> None:
    asked = ModelOptions(max_sequences=sequences)
    step = engine_options("inductor", asked, length)
    shape = ModelShape.of(demo_checkpoint)
    plan = plan_shape(shape, memory, length, step=StepSize(8192, sequences), device="cuda")
    largest = StepSize.on_gpu(8192, sequences, length)
    assert (largest.max_tokens, largest.logit_rows) == (step.max_tokens, step.logit_rows)
    model = object.__new__(Model)
    model.options, model.max_length, model.page_bytes = asked, length, plan.page_bytes
    model.engine = Gpu(memory - plan.weights - plan.activations)
    if plan.pages:
        assert model._pages() == plan.pages
    else:
        with pytest.raises(EngineError, match="nine tenths of the free memory of cuda:0"):
            model._pages()


def test_the_default_step_is_that_of_a_start_on_the_device(demo_checkpoint: Path) -> None:
    shape = ModelShape.of(demo_checkpoint)
    for device, kind in (("cpu", "onnxruntime"), ("cuda", "inductor")):
        rows = engine_options(kind, ModelOptions(), shape.context).max_tokens
        wanted = plan_shape(shape, GIB, step=StepSize(rows), device=device)
        assert plan_shape(shape, GIB, device=device) == wanted


def planned(*arguments: str) -> dict[str, object]:
    answer = CliRunner().invoke(application(), ["plan", *arguments, "--memory", "1GiB", "--json"])
    assert answer.exit_code == 0, answer.output
    figures: dict[str, object] = json.loads(answer.stdout)
    return figures


def test_the_verb_plans_for_a_gpu_and_explicit_options_win(demo_checkpoint: Path) -> None:
    folder = str(demo_checkpoint)
    cpu, gpu = planned(folder), planned(folder, "--device", "cuda")
    assert cpu == planned(folder, "--device", "cpu") == planned(folder, "--max_tokens_per_step", "512")
    assert (cpu["device"], gpu["device"]) == ("cpu", "cuda")
    assert gpu["activations_bytes"] > cpu["activations_bytes"]
    left = GIB - gpu["weights_bytes"] - gpu["activations_bytes"]
    assert gpu["reserved_bytes"] == left - int(left * 0.9)
    assert gpu["kv_bytes"] <= left * 0.9
    assert planned(folder, "--device", "cuda", "--max_tokens_per_step", "8192") == gpu
    small = planned(folder, "--device", "cuda", "--max_tokens_per_step", "64")
    assert small["activations_bytes"] < cpu["activations_bytes"]
    few = planned(folder, "--device", "cuda", "--max_sequences", "2")
    assert (few["requests"], few["tokens"]) == (2, 2 * 4096)
    table = CliRunner().invoke(application(), ["plan", folder, "--memory", "1GiB", "--device", "cuda"])
    assert "kept free" in table.stdout
    assert "--dtype float32" not in table.stdout


def test_a_gpu_that_is_too_small_says_by_how_much(demo_checkpoint: Path) -> None:
    shape = ModelShape.of(demo_checkpoint)
    step = StepSize(64, 4)
    small = plan_shape(shape, 20 * 2**20, step=step, device="cuda")
    with pytest.raises(PlanError, match=r"which is 90% of the rest: .* lower max_model_len to") as refused:
        small.check()
    asked = int(str(refused.value).split("lower max_model_len to ")[1].split(",")[0])
    plan_shape(shape, 20 * 2**20, asked, step=step, device="cuda").check()


@pytest.mark.parametrize("device", ["gpu", "cuda:0"])
def test_a_device_that_nothing_is_planned_for(demo_checkpoint: Path, device: str) -> None:
    with pytest.raises(PlanError, match=f"device is '{device}'; give cpu or cuda"):
        plan_shape(ModelShape.of(demo_checkpoint), GIB, step=StepSize(64), device=device)


def test_a_quantised_model_has_no_plan_for_a_gpu(demo_checkpoint: Path) -> None:
    """As long as the kinds that run one compute on the CPU."""
    assert {device for kind in KINDS.values() if kind.runs_quantized for device in kind.devices} == {"cpu"}
    shape = replace(ModelShape.of(demo_checkpoint), dtype="float32", quantized_bytes=1000)
    with pytest.raises(PlanError, match=r"device is cuda, and .* is quantised"):
        plan_shape(shape, GIB, device="cuda")


@pytest.mark.parametrize(
    ("text", "count"),
    [("24GiB", 24 * GIB), ("1.5 gib", GIB + GIB // 2), ("500MB", 500 * 10**6), ("64 KiB", 65536)],
)
def test_amounts_of_memory(text: str, count: int) -> None:
    assert parse_memory(text) == parse_kv_cache_bytes(text) == count


@pytest.mark.parametrize(
    "text", ["", "24", "GiB", "-1GiB", "24 GiB of RAM", "1e3MiB", "3 Gib/s", "9" * 400 + "GiB"]
)
def test_what_is_no_amount_of_memory(text: str) -> None:
    with pytest.raises(PlanError, match="give a number and a unit, such as 24GiB"):
        parse_memory(text)


def test_the_kv_cache_may_be_given_in_bytes_too() -> None:
    assert parse_kv_cache_bytes("1073741824") == parse_kv_cache_bytes("1GiB") == GIB
    for text in ("", "GiB", "-5", "1.5", "10Gigs", "1e9", "9" * 5000):
        with pytest.raises(
            PlanError, match=f"kv_cache_bytes is '{text}'; give a number of bytes, or a number"
        ):
            parse_kv_cache_bytes(text)


@pytest.mark.parametrize(
    ("memory", "length", "message"),
    [
        (20 * 2**20, None, r"6\.5 MiB more than the 20\.0 MiB that there are; lower max_model_len to 1856"),
        (12 * 2**20, None, "lower max_tokens_per_step and max_model_len"),
        (2**20, 64, "take a narrower dtype or a smaller model"),
    ],
)
def test_a_model_that_does_not_fit_says_by_how_much_and_what_to_lower(
    demo_checkpoint: Path, memory: int, length: int | None, message: str
) -> None:
    plan = plan_shape(ModelShape.of(demo_checkpoint), memory, length)
    with pytest.raises(PlanError, match=message):
        plan.check()


def test_what_the_message_says_to_lower_is_enough(demo_checkpoint: Path) -> None:
    plan = plan_shape(ModelShape.of(demo_checkpoint), 20 * 2**20, 1856)
    plan.check()
    assert plan.requests == 1


def test_the_verb_prints_a_table_or_json(demo_checkpoint: Path) -> None:
    runner = CliRunner()
    table = runner.invoke(application(), ["plan", str(demo_checkpoint), "--memory", "1GiB"])
    assert table.exit_code == 0
    assert "requests that fit" in table.stdout
    assert "The CPU engines compute in float32: for them, plan with --dtype float32.\n" in table.stdout
    answer = runner.invoke(application(), ["plan", str(demo_checkpoint), "--memory", "1GiB", "--json"])
    figures = json.loads(answer.stdout)
    assert figures["requests"] == plan_shape(ModelShape.of(demo_checkpoint), GIB).requests
    assert figures["max_model_len"] == 4096


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--memory", "24"], "memory is '24'; give a number and a unit"),
        (["--memory", "1GiB", "--dtype", "int4"], "dtype int4 is not known; dtypes are float32"),
        (["--memory", "1GiB", "--max_model_len", "5000"], "the model's context has 4096 tokens"),
        (["--memory", "1GiB", "--page_size", "0"], "page_size is 0; it must be at least 1"),
        (["--memory", "1GiB", "--device", "gpu"], "device is 'gpu'; give cpu or cuda"),
        (["--memory", "1MiB"], "more than the 1.0 MiB that there are"),
    ],
)
def test_bad_input_is_one_sentence_and_exit_code_2(
    demo_checkpoint: Path, arguments: list[str], message: str
) -> None:
    command = [sys.executable, "-m", "cleave", "plan", str(demo_checkpoint), *arguments]
    answer = subprocess.run(command, capture_output=True, text=True)
    assert answer.returncode == 2
    assert answer.stderr.startswith("error: ")
    assert answer.stderr.count("\n") == 1
    assert message in answer.stderr


def test_a_folder_that_is_no_model_is_refused(tmp_path: Path) -> None:
    for folder, message in ((tmp_path, "is not a checkpoint"), (tmp_path / "no", "there is no artifact")):
        command = [sys.executable, "-m", "cleave", "plan", str(folder), "--memory", "1GiB"]
        answer = subprocess.run(command, capture_output=True, text=True)
        assert answer.returncode == 2
        assert message in answer.stderr


def test_a_hub_id_is_told_where_it_can_be_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "file").write_text("")
    for given, is_hub_id in (
        ("meta-llama/Llama-3.1-8B", True),
        ("a/file", False),
        ("no_folder", False),
        ("no/such/folder", False),
        (str(tmp_path / "no"), False),
    ):
        with pytest.raises(ArtifactError, match=f"no checkpoint at {given}; give its folder") as refused:
            ModelShape.of(Path(given))
        assert ("; hub ids are for `cleave export`" in str(refused.value)) is is_hub_id


def test_it_needs_neither_torch_nor_transformers(demo_checkpoint: Path, demo_artifact: Path) -> None:
    for folder in (demo_checkpoint, demo_artifact):
        code = (
            "import sys; sys.modules['torch'] = sys.modules['transformers'] = None\n"
            f"sys.argv = ['cleave', 'plan', {str(folder)!r}, '--memory', '1GiB', '--json']\n"
            "from cleave.__main__ import main; main()"
        )
        answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert answer.returncode == 0, answer.stderr
        assert json.loads(answer.stdout)["parameters"] > 0
