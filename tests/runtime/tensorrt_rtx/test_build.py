"""Plans built by TensorRT for RTX itself, on a machine that needs no GPU."""

from __future__ import annotations

import functools
import io
import json
import re
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
from command import process
from rich.console import Console

from cleave.errors import EngineError, MissingPackage
from cleave.export.artifact import Artifact
from cleave.export.exporter import ExportRequest, export
from cleave.export.pieces import cut
from cleave.runtime.engine_cache.cache import EngineCache
from cleave.runtime.engine_cache.key import EngineKey
from cleave.runtime.engines.builder import BuildProgress, get_engine
from cleave.runtime.engines.engine import EngineOptions
from cleave.runtime.engines.tensorrt_rtx import architecture, library
from cleave.runtime.engines.tensorrt_rtx.build import BuildRequest, build_piece, distinct
from cleave.runtime.engines.tensorrt_rtx.build import build as build_pieces
from cleave.runtime.engines.tensorrt_rtx.builder import TensorRtRtxBuilder
from cleave.runtime.engines.tensorrt_rtx.monitor import STEPS
from cleave.runtime.engines.tensorrt_rtx.network import Network
from cleave.runtime.engines.tensorrt_rtx.plan import DESCRIPTION, EngineDescription
from cleave.runtime.engines.tensorrt_rtx.profiles import Profiles

pytest.importorskip("tensorrt_rtx_libs", reason="TensorRT for RTX has no wheel for this machine")
trt = library.load()
THREE = ("8.6", "8.9", "12.0")
SMALL = Profiles(max_sequences=1, max_tokens=16)
DTYPES = {"float32": "FLOAT", "float16": "HALF", "bfloat16": "BF16"}
FAMILIES = ("gqa", "tied", "attention_bias", "mlp_bias", "mistral_window", "qwen2", "qwen3", "one_layer")


def build(
    opened: Artifact, request: BuildRequest, folder: Path, progress: BuildProgress | None = None
) -> EngineDescription:
    return build_pieces(cut(opened.batchful_graph()), request, folder, progress=progress)


def one(opened: Artifact, name: str, *capabilities: str) -> memoryview:
    """The plan of one piece."""
    piece = distinct(cut(opened.batchful_graph()))[name]
    request = BuildRequest(capabilities, SMALL)
    return build_piece(trt, library.make_logger(trt), name, piece, request)[0]


@pytest.fixture(scope="module")
def opened(artifact: Callable[[str], Path]) -> Artifact:
    return Artifact.open(artifact("gqa"))


@pytest.fixture(scope="module")
def narrow(
    checkpoint: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Artifact]:
    """An artifact of a dtype."""

    @functools.cache
    def get(dtype: str) -> Artifact:
        folder = tmp_path_factory.mktemp(dtype)
        export(ExportRequest(str(checkpoint("qwen3")), folder, dtype=dtype, check=False))
        return Artifact.open(folder)

    return get


@pytest.mark.parametrize("variant", FAMILIES)
def test_all_pieces_build_for_three_architectures(
    variant: str, artifact: Callable[[str], Path], tmp_path: Path
) -> None:
    opened = Artifact.open(artifact(variant))
    engine = build(opened, BuildRequest(THREE, SMALL), tmp_path)
    pieces = distinct(cut(opened.batchful_graph()))
    assert [piece.name for piece in engine.pieces] == list(pieces)
    assert {path.name for path in tmp_path.iterdir()} == {DESCRIPTION, *(f"{name}.plan" for name in pieces)}
    weights = sum(opened.weight(name).nbytes for piece in pieces.values() for name in piece.weights.values())
    for described in engine.pieces:
        piece = pieces[described.name]
        assert [item.name for item in described.inputs] == [*piece.inputs, *piece.weights]
        assert [item.name for item in described.outputs] == list(piece.outputs)
        for item, name in zip(described.inputs[len(piece.inputs) :], piece.weights.values(), strict=True):
            assert item.shape == opened.weight(name).shape
        assert (tmp_path / described.file).stat().st_size == described.bytes > 10_000
        assert {item.shape[0] for item in described.inputs[: len(piece.inputs)]} == {-1}
    assert EngineDescription.read(tmp_path) == engine
    assert weights > 0


@pytest.mark.parametrize("dtype", DTYPES)
def test_types_are_those_of_the_graph_and_logits_are_float32(
    dtype: str, narrow: Callable[[str], Artifact], tmp_path: Path
) -> None:
    engine = build(narrow(dtype), BuildRequest(("8.6",), SMALL), tmp_path)
    types = {item.name: item.dtype for piece in engine.pieces for item in (*piece.inputs, *piece.outputs)}
    assert types.pop("logits") == "FLOAT"
    assert types.pop("logit_rows") == "INT64"
    assert set(types.values()) == {DTYPES[dtype]}


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_architecture_that_there_is_can_be_built_for(
    dtype: str, narrow: Callable[[str], Artifact]
) -> None:
    """And what `check_dtype` refuses is what the builder cannot do."""
    refused = set()
    for capability in architecture.supported(trt):
        try:
            assert one(narrow(dtype), "first", capability).nbytes > 10_000
        except EngineError:
            refused.add(capability)
    assert refused == ({"7.5"} if dtype != "float16" else set())
    for capability in architecture.supported(trt):
        if capability in refused:
            with pytest.raises(EngineError, match=f"only float16 .*{dtype}.*--dtype float16"):
                architecture.check_dtype((capability,), dtype)
        else:
            architecture.check_dtype((capability,), dtype)


def test_no_weight_is_in_a_plan(artifact: Callable[[str], Path], tmp_path: Path) -> None:
    """The bytes of a matrix appear nowhere in the plan, whole or in part."""
    opened = Artifact.open(artifact("gqa"))
    build(opened, BuildRequest(("8.6",), SMALL), tmp_path)
    for name, piece in distinct(cut(opened.batchful_graph())).items():
        plan = (tmp_path / f"{name}.plan").read_bytes()
        for tensor in piece.weights.values():
            assert opened.weight(tensor).tobytes()[:64] not in plan


# What goes into the cache's key.


def builder(opened: Artifact, capabilities: str = "8.6,8.9", **changes: int) -> TensorRtRtxBuilder:
    sizes = {"max_tokens": 16, "max_sequences": 1} | changes
    return TensorRtRtxBuilder(opened, EngineOptions(compute_capability=capabilities, **sizes))


def test_the_key_is_that_of_the_pieces_and_not_of_the_depth(artifact: Callable[[str], Path]) -> None:
    three, two, other = (builder(Artifact.open(artifact(name))).key for name in ("gqa", "two_layers", "mha"))
    assert three == two
    assert three.differing(other) == ("graph",)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"capabilities": "8.6"}, "device [8.6, 8.9] -> [8.6]"),
        ({"max_tokens": 32}, "max tokens 16 -> 32"),
        ({"max_sequences": 4}, "max sequences 1 -> 4"),
    ],
)
def test_what_changes_is_told_as_one_field(opened: Artifact, changes: dict[str, Any], words: str) -> None:
    assert builder(opened, **changes).key.differences(builder(opened).key) == words


def test_plans_for_more_gpus_or_larger_steps_serve_too(opened: Artifact) -> None:
    wanted = builder(opened, "8.9", max_tokens=32, max_sequences=2)
    for serves, other in (
        (True, builder(opened, "8.9", max_tokens=32, max_sequences=2)),
        (True, builder(opened, "8.9,12.0", max_tokens=32, max_sequences=2)),
        (True, builder(opened, "8.9", max_tokens=64, max_sequences=4)),
        (False, builder(opened, "12.0", max_tokens=32, max_sequences=2)),
        (False, builder(opened, "8.9", max_tokens=16, max_sequences=2)),
        (False, builder(opened, "8.9", max_tokens=32, max_sequences=1)),
    ):
        assert wanted.serves(other.key) is serves
    assert not wanted.serves(EngineKey({**wanted.key.fields, "kind_version": "1.0"}))


def test_nothing_is_built_a_second_time(opened: Artifact, tmp_path: Path) -> None:
    cache = EngineCache(tmp_path / "cache")
    with get_engine(builder(opened), cache, label="tiny") as first:
        before = {path: path.stat().st_mtime_ns for path in first.files.values()}
        assert first.was_built
        assert set(first.files) == {DESCRIPTION, "first.plan", "middle.plan", "last.plan"}
    for again in (builder(opened), builder(opened, "8.9")):
        with get_engine(again, cache, label="tiny", allow_build=False) as found:
            assert not found.was_built
            assert {path: path.stat().st_mtime_ns for path in found.files.values()} == before
    assert cache.why(builder(opened, "12.0").key) == "device [8.6, 8.9] -> [12.0]"
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(builder(opened).table(found.folder))
    text = console.export_text()
    for words in ("8.6, 8.9", "first", "middle", "last", "decode 1; prefill 1 to 16", "bytes", "seconds"):
        assert words in text


# Progress, and its end.


def test_progress_rises_to_the_end_piece_by_piece(opened: Artifact, tmp_path: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    build(opened, BuildRequest(("8.6",), SMALL), tmp_path, progress=lambda *report: seen.append(report))
    assert list(dict.fromkeys(name for name, _, _ in seen)) == ["first", "middle", "last"]
    for piece in ("first", "middle", "last"):
        done = [done for name, done, _ in seen if name == piece]
        assert done == sorted(done)
        assert done[-1] == STEPS
        assert len(set(done)) > 10
    assert {total for _, _, total in seen} == {STEPS}


@pytest.mark.parametrize("piece", ["first", "last"])
@pytest.mark.parametrize("raised", [KeyboardInterrupt, OSError])
def test_what_is_raised_in_a_build_ends_it_and_leaves_nothing(
    opened: Artifact, tmp_path: Path, piece: str, raised: type[BaseException]
) -> None:
    calls = []

    def progress(name: str, done: int, total: int) -> None:
        if name == piece and done > total // 4:
            calls.append(done)
            raise raised

    with pytest.raises(raised):
        build(opened, BuildRequest(("8.6",), SMALL), tmp_path, progress=progress)
    assert len(calls) == 1
    assert not list(tmp_path.iterdir())


INTERRUPTED = """
    import os, signal, sys
    from cleave.__main__ import main
    from cleave.runtime.engines.tensorrt_rtx import monitor

    step = monitor.Phases.step
    def once(self, name, number):
        if not seen:
            seen.append(name)
            os.kill(os.getpid(), signal.SIGINT)
        step(self, name, number)
    seen = []
    monitor.Phases.step = once
    main()
"""


def test_ctrl_c_in_the_middle_of_a_build_leaves_nothing_in_the_cache(
    artifact: Callable[[str], Path], tmp_path: Path
) -> None:
    """The signal arrives while TensorRT builds, which knows nothing of it."""
    line = ["-c", textwrap.dedent(INTERRUPTED), "build", artifact("one_layer"), "--engine", "tensorrt_rtx"]
    line += ["--compute_capability", "8.9", "--max_tokens_per_step", 16, "--max_sequences", 1]
    ended = process(line, CLEAVE_CACHE=str(tmp_path))
    assert ended.code == 130
    assert "Traceback" not in ended.err
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and path.suffix != ".lock"]


# Refusals.


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("9.0", r"9\.0; use the engine kind `inductor`.*8\.6"),
        ("8.6,10.0", r"10\.0; use the engine kind `inductor`"),
        ("7.0", r"7\.0; use the engine kind `inductor`"),
        ("8.7", r"does not build for compute capability 8\.7; it has 7\.5, 8\.0, 8\.6, 8\.9, 12\.0, 12\.1"),
        ("ada", r"'ada' is no compute capability.*8\.6,8\.9,12\.0"),
        ("", r"'' is no compute capability"),
        ("8.6,,8.9", r"'' is no compute capability"),
        ("90", r"'90' is no compute capability"),
    ],
)
def test_an_architecture_that_cannot_be_is_refused(given: str, words: str) -> None:
    with pytest.raises(EngineError, match=words) as error:
        architecture.parse(given, trt)
    assert len(str(error.value).splitlines()) == 1


def test_architectures_are_sorted_and_each_there_once() -> None:
    assert architecture.parse(" 12.0, 8.6,sm_8.9 ,8.6", trt) == THREE
    assert architecture.parse(["8.9"], trt) == ("8.9",)


def test_a_builder_refuses_before_anything_is_built(
    opened: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(library, "make_logger", None)
    for capabilities, words in (("8.6,9.0", r"9\.0"), ("7.5", "--dtype float16")):
        with pytest.raises(EngineError, match=words):
            builder(opened, capabilities)


def test_without_a_gpu_its_compute_capability_has_to_be_given(opened: Artifact) -> None:
    with pytest.raises(EngineError, match=r"sees no NVIDIA GPU.* --compute_capability 8\.9"):
        TensorRtRtxBuilder(opened, EngineOptions(max_tokens=16))


def test_cleave_build_prints_the_table_and_says_cached_the_second_time(
    artifact: Callable[[str], Path], tmp_path: Path
) -> None:
    line = [*("-m", "cleave", "build", artifact("one_layer"), "--engine", "tensorrt_rtx")]
    line += ["--compute_capability", "8.6,8.9,12.0", "--max_tokens_per_step", 16, "--max_sequences", 1]
    environment = {"CLEAVE_CACHE": str(tmp_path / "cache"), "COLUMNS": "120"}
    first, second = (process(line, **environment) for _ in range(2))
    assert first.code == second.code == 0, first.err
    for words in ("8.6, 8.9, 12.0", "first", "last", "decode 1; prefill 1 to 16", "built in"):
        assert words in first.out
    assert "cached" in second.out
    refused = process([*line[:6], "--compute_capability", "9.0"], **environment)
    refused.refused("9.0", "inductor", "8.6")


def changed(model: onnx.ModelProto, layer: int, **fields: str) -> onnx.ModelProto:
    """The graph with the first Add after the attention of every layer from `layer` on changed."""
    adds = [node for node in model.graph.node if node.op_type == "Add"]
    for node in adds[2 * layer :: 2]:
        for name, value in fields.items():
            setattr(node, name, value)
    return model


def test_an_operator_that_the_parser_does_not_know_is_named_with_its_node_and_layer(opened: Artifact) -> None:
    graph = changed(opened.batchful_graph(), 0, op_type="Mystery")
    names = [node.name for node in graph.graph.node if node.op_type == "Mystery"]
    pieces = distinct(cut(graph))
    for piece, name, where in (
        ("middle", names[0], "between the attention of layer 0 and layer 1"),
        ("last", names[-1], "after the attention of the last layer"),
    ):
        with pytest.raises(EngineError) as error:
            Network(trt, library.make_logger(trt), piece, pieces[piece])
        assert f"node {name!r} (Mystery) {where}" in str(error.value)
        assert "inductor" in str(error.value)
        assert len(str(error.value).splitlines()) == 1


def test_every_unknown_operator_is_named(opened: Artifact) -> None:
    graph = opened.batchful_graph()
    for node in graph.graph.node:
        if node.op_type in ("Sigmoid", "Mul"):
            node.op_type = f"Odd{node.op_type}"
    with pytest.raises(EngineError) as error:
        Network(trt, library.make_logger(trt), "middle", cut(graph)[1])
    assert re.findall(r"\((\w+)\) between", str(error.value)) == ["OddSigmoid", "OddMul", "OddMul"]


def test_an_operator_of_another_domain_is_not_taken_for_a_standard_one(opened: Artifact) -> None:
    """The parser goes by the type alone: it would compute something else, in silence."""
    graph = changed(opened.batchful_graph(), 0, domain="somebody.else")
    with pytest.raises(EngineError, match=r"domain 'somebody\.else'.*ignores domains"):
        Network(trt, library.make_logger(trt), "middle", cut(graph)[1])


def test_a_node_whose_shapes_do_not_fit_is_named(opened: Artifact) -> None:
    piece = cut(opened.batchful_graph())[0]
    piece.model.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 7
    with pytest.raises(EngineError, match=r"\(RMSNormalization\) before the attention of layer 0"):
        Network(trt, library.make_logger(trt), "first", piece)


def test_what_the_builder_refuses_is_told_with_its_reason(opened: Artifact) -> None:
    with pytest.raises(EngineError, match=r"cannot build the first piece for 7\.5: .*Turing") as error:
        one(opened, "first", "7.5")
    assert len(str(error.value).splitlines()) == 1


def test_a_missing_package_is_named_with_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    monkeypatch.setattr(library.importlib, "import_module", missing)
    with pytest.raises(MissingPackage, match=r"tensorrt_rtx needs tensorrt_rtx_libs: pip install"):
        library.load()


@pytest.mark.parametrize("damage", ["{", '{"format": 2}', '{"format": 1, "pieces": []}', "[]"])
def test_a_damaged_description_is_refused(tmp_path: Path, damage: str) -> None:
    (tmp_path / DESCRIPTION).write_text(damage, "utf-8")
    with pytest.raises(EngineError, match="build the engine again"):
        EngineDescription.read(tmp_path)


def test_the_description_is_json_that_people_can_read(opened: Artifact, tmp_path: Path) -> None:
    build(opened, BuildRequest(("8.6",), SMALL), tmp_path)
    data = json.loads((tmp_path / DESCRIPTION).read_text("utf-8"))
    assert data["version"] == trt.__version__
    assert data["compute_capabilities"] == ["8.6"]
    assert data["profiles"] == {"max_sequences": 1, "max_tokens": 16, "prefill_rows": None}
