"""The artifact, held against the checkpoint by the libraries that others read it with."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import pytest
import torch
from command import contents
from damage import copy_of
from onnx.external_data_helper import load_external_data_for_model
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from cleave.export.artifact import BATCHFUL, WEIGHTS, Artifact, digest_file
from cleave.export.exporter import ExportRequest, export
from cleave.export.tensorfile import TensorFileError, TensorFileWriter, plan_layout, read_header
from cleave.plugins.schema import is_cut, layer_of

SOME = ("gqa", "tied", "attention_bias", "mlp_bias", "qwen3", "one_layer")
EMBEDDING = "model.embed_tokens.weight"


@pytest.fixture(params=SOME)
def variant(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
def opened(variant: str, artifact: Callable[[str], Path]) -> Artifact:
    return Artifact.open(artifact(variant))


# Weights.


def test_weights_are_the_checkpoints_own_as_safetensors_reads_them(
    variant: str, checkpoint: Callable[[str], Path], artifact: Callable[[str], Path]
) -> None:
    expected = load_file(checkpoint(variant) / "model.safetensors")
    got = load_file(artifact(variant) / WEIGHTS)
    assert got.keys() == expected.keys()
    for name, tensor in got.items():
        assert tensor.dtype == expected[name].dtype
        assert torch.equal(tensor, expected[name]), name


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_weights_are_rounded_as_torch_rounds(
    checkpoint: Callable[[str], Path], tmp_path: Path, dtype: str
) -> None:
    model = str(checkpoint("tied"))
    export(ExportRequest(model, tmp_path, ("embed_tokens",), dtype=dtype, check=False))
    (got,) = load_file(tmp_path / WEIGHTS).values()
    expected = load_file(Path(model) / "model.safetensors")[EMBEDDING].to(getattr(torch, dtype))
    assert got.dtype == expected.dtype
    assert torch.equal(got, expected)


def test_an_infinity_of_the_checkpoint_is_kept(checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    """It is the checkpoint's own business; only what this export would overflow is refused."""
    model = copy_of(checkpoint("one_layer"), tmp_path / "model")
    tensors = load_file(model / "model.safetensors")
    tensors[EMBEDDING][0, 0], tensors[EMBEDDING][0, 1] = torch.inf, torch.nan
    save_file(tensors, model / "model.safetensors")
    export(ExportRequest(str(model), tmp_path / "output", ("embed_tokens",), dtype="float16", check=False))
    (got,) = load_file(tmp_path / "output" / WEIGHTS).values()
    assert torch.isinf(got[0, 0])
    assert torch.isnan(got[0, 1])


def test_every_weight_is_stored_once_and_the_data_has_no_gaps(opened: Artifact) -> None:
    tensors = sorted(opened.tensors.values(), key=lambda tensor: tensor.offset)
    for before, after in itertools.pairwise(tensors):
        assert before.offset + before.nbytes == after.offset
    assert tensors[-1].offset + tensors[-1].nbytes == (opened.folder / WEIGHTS).stat().st_size
    assert tensors[0].offset % 64 == 0
    assert "lm_head.weight" not in opened.tensors or not opened.manifest.config["tie_word_embeddings"]


def test_mapped_weights_are_what_safetensors_reads(opened: Artifact) -> None:
    with safe_open(opened.folder / WEIGHTS, "np") as file:
        for name in file.keys():  # noqa: SIM118
            np.testing.assert_array_equal(opened.weight(name), file.get_tensor(name))
            assert not opened.weight(name).flags.writeable
        np.testing.assert_array_equal(opened.embedding(), file.get_tensor(EMBEDDING))


def test_bfloat16_weights_are_mapped_too(checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    export(ExportRequest(str(checkpoint("one_layer")), tmp_path, dtype="bfloat16", check=False))
    embedding = Artifact.open(tmp_path).embedding()
    assert embedding.dtype == ml_dtypes.bfloat16
    expected = load_file(tmp_path / WEIGHTS)[EMBEDDING].float().numpy()
    np.testing.assert_array_equal(embedding.astype(np.float32), expected)


# The batchful graph.


def test_there_is_one_operator_for_each_layer(opened: Artifact) -> None:
    cuts = [layer_of(node) for node in opened.batchful_graph().graph.node if is_cut(node)]
    assert cuts == list(range(opened.manifest.num_layers))


@pytest.mark.parametrize("number", [1, 2])
def test_the_first_layers_have_as_many_operators_and_no_more_weights(
    checkpoint: Callable[[str], Path], tmp_path: Path, number: int
) -> None:
    manifest = export(ExportRequest(str(checkpoint("gqa")), tmp_path, num_layers=number, check=False))
    opened = Artifact.open(tmp_path)
    assert sum(is_cut(node) for node in opened.batchful_graph().graph.node) == number == manifest.num_layers
    layers = {name.split(".")[2] for name in opened.tensors if name.startswith("model.layers.")}
    assert layers == {str(layer) for layer in range(number)}


def test_the_interface_is_the_one_that_engines_are_written_for(opened: Artifact) -> None:
    graph, manifest = opened.batchful_graph().graph, opened.manifest

    def described(value: onnx.ValueInfoProto) -> tuple[str, int, list[object]]:
        tensor = value.type.tensor_type
        return value.name, tensor.elem_type, [dim.dim_value or dim.dim_param for dim in tensor.shape.dim]

    assert [described(value) for value in graph.input] == [
        ("inputs_embeds", onnx.TensorProto.FLOAT, ["tokens", manifest.hidden_size]),
        ("logit_rows", onnx.TensorProto.INT64, ["rows"]),
    ]
    assert [described(value) for value in graph.output] == [
        ("logits", onnx.TensorProto.FLOAT, ["rows", manifest.vocab_size])
    ]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_logits_are_float32_whatever_the_dtype(
    checkpoint: Callable[[str], Path], tmp_path: Path, dtype: str
) -> None:
    export(ExportRequest(str(checkpoint("one_layer")), tmp_path, dtype=dtype, check=False))
    graph = Artifact.open(tmp_path).batchful_graph().graph
    narrow = getattr(onnx.TensorProto, dtype.upper())
    assert graph.input[0].type.tensor_type.elem_type == narrow
    assert graph.output[0].type.tensor_type.elem_type == onnx.TensorProto.FLOAT
    assert {tensor.data_type for tensor in graph.initializer if tensor.external_data} == {narrow}


def test_linear_layers_are_gemms_on_the_checkpoints_own_names_and_layout(
    variant: str, opened: Artifact, checkpoint: Callable[[str], Path]
) -> None:
    graph = opened.batchful_graph().graph
    linear = {}
    for node in graph.node:
        assert node.op_type != "MatMul"
        if node.op_type == "Gemm":
            attributes = {entry.name: entry.i for entry in node.attribute if entry.name.startswith("trans")}
            assert attributes == {"transB": 1} or attributes == {"transA": 0, "transB": 1}
            linear[node.input[1]] = node
    stored = load_file(checkpoint(variant) / "model.safetensors")
    lm_head = EMBEDDING if opened.manifest.config["tie_word_embeddings"] else "lm_head.weight"
    expected = {name for name in stored if stored[name].ndim == 2 and "embed_tokens" not in name}
    assert set(linear) == expected - {"lm_head.weight"} | {lm_head}
    for name, node in linear.items():
        bias = name.replace(".weight", ".bias")
        assert list(node.input[2:]) == ([bias] if bias in stored else [])
    external = {tensor.name: tensor for tensor in graph.initializer if tensor.external_data}
    assert set(external) == set(stored) - ({EMBEDDING} - {lm_head})
    for name, tensor in external.items():
        assert tuple(tensor.dims) == tuple(stored[name].shape)


def test_small_constants_are_all_that_the_graph_itself_holds(opened: Artifact) -> None:
    graph = opened.batchful_graph().graph
    inside = [tensor for tensor in graph.initializer if not tensor.external_data]
    assert sum(len(tensor.SerializeToString()) for tensor in inside) < 4096
    assert (opened.folder / BATCHFUL).stat().st_size < 64 << 10


def test_onnx_finds_the_weights_where_the_graph_points(
    opened: Artifact, variant: str, checkpoint: Callable[[str], Path]
) -> None:
    """onnx's own reader follows location, offset and length into weights.safetensors."""
    model = onnx.load(opened.folder / BATCHFUL, load_external_data=False)
    names = {tensor.name for tensor in model.graph.initializer if tensor.external_data}
    load_external_data_for_model(model, str(opened.folder))
    stored = load_file(checkpoint(variant) / "model.safetensors")
    for tensor in model.graph.initializer:
        if tensor.name in names:
            np.testing.assert_array_equal(onnx.numpy_helper.to_array(tensor), stored[tensor.name].numpy())


def test_onnx_checks_every_graph(opened: Artifact) -> None:
    onnx.checker.check_model(opened.folder / BATCHFUL)
    for pair in set(opened.batchless_graphs()):
        for path in pair:
            onnx.checker.check_model(path, full_check=True)


# The manifest and the tokenizer.


def test_the_manifest_has_every_file_with_its_digest(opened: Artifact) -> None:
    there = {path.name for path in opened.folder.iterdir()} - {"manifest.json"}
    assert there == set(opened.manifest.files)
    for name, digest in opened.manifest.files.items():
        assert digest_file(opened.folder / name) == digest
        assert digest.bytes == (opened.folder / name).stat().st_size


def test_the_same_export_twice_is_the_same_to_the_byte(
    checkpoint: Callable[[str], Path], artifact: Callable[[str], Path], tmp_path: Path
) -> None:
    export(ExportRequest(str(checkpoint("gqa")), tmp_path, check=False))
    assert contents(tmp_path) == contents(artifact("gqa"))


def test_the_tokenizer_encodes_and_decodes_as_transformers_does(
    demo_checkpoint: Path, demo_artifact: Path
) -> None:
    ours = Tokenizer.from_file(str(demo_artifact / "tokenizer.json"))
    theirs = AutoTokenizer.from_pretrained(demo_checkpoint)
    for text in ("San Francisco is a", "", " a  b\n\tc", "naïve 東京 🎉\u200d", "<s></s> [1, 2]", "x" * 1000):
        ids = ours.encode(text).ids
        assert ids == theirs(text)["input_ids"]
        assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True)
    assert (demo_artifact / "chat_template.jinja").is_file()


def test_an_open_artifact_reports_what_it_compares(artifact: Callable[[str], Path]) -> None:
    seen: dict[str, list[tuple[int, int]]] = {}
    Artifact.open(
        artifact("gqa"), progress=lambda name, done, total: seen.setdefault(name, []).append((done, total))
    )
    opened = Artifact.open(artifact("gqa"), verify=False)
    assert seen.keys() == opened.manifest.files.keys()
    for steps in seen.values():
        assert steps[-1][0] == steps[-1][1]


# The writer of tensor files.


def test_a_tensor_file_is_read_back_by_safetensors(tmp_path: Path) -> None:
    layout = plan_layout(
        [("b", "F32", (2, 3)), ("a", "F16", (4,)), ("none", "BF16", (0, 7))], header_bytes=4096
    )
    assert len(layout.header) >= 4096
    with TensorFileWriter(tmp_path / "x", layout) as writer:
        writer.begin("b")
        writer.write(np.arange(2, dtype=np.float32).data)
        writer.write(np.arange(2, 6, dtype=np.float32).data)
        writer.begin("a")
        writer.write(np.arange(4, dtype=np.float16).tobytes())
        writer.begin("none")
    tensors = load_file(tmp_path / "x")
    assert tensors["b"].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert tensors["a"].tolist() == [0, 1, 2, 3]
    assert tensors["none"].shape == (0, 7)
    assert read_header(tmp_path / "x")["a"].offset == layout.offsets["a"]
    assert (tmp_path / "x").stat().st_size == layout.total


@pytest.mark.parametrize(
    "steps", [["b"], ["a", "c"], ["a", "a"], ["a:5"], ["a:3", "b"], ["a:4"], ["a:4", "b:3"]]
)
def test_a_tensor_file_that_is_not_whole_is_an_error(tmp_path: Path, steps: list[str]) -> None:
    layout = plan_layout([("a", "BF16", (2,)), ("b", "BF16", (2,))])

    def write() -> None:
        with TensorFileWriter(tmp_path / "x", layout) as writer:
            for step in steps:
                name, _, count = step.partition(":")
                writer.begin(name)
                writer.write(bytes(int(count or 0)))

    with pytest.raises(TensorFileError):
        write()
