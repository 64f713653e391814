"""An export part by part, in any order, is the export in one go; what is not of one kind does not mix."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from command import assert_one_sentence, cleave, contents
from damage import copy_of, edit_json
from safetensors.numpy import load_file, save_file
from transformers import AutoModelForCausalLM

from cleave import LLM, SamplingParams
from cleave.errors import ArtifactError, ExportError
from cleave.export import exporter, trace
from cleave.export.artifact import BATCHFUL, WEIGHTS, Artifact, read_manifest
from cleave.export.exporter import ExportRequest, export
from cleave.export.manifest import PARTS

QUICK = tuple(part for part in PARTS if part != "batchful")


def refused(*words: str, **request: Any) -> None:
    with pytest.raises(ExportError) as error:
        export(ExportRequest(**request, check=False))
    assert_one_sentence(str(error.value), "", *words)


@pytest.fixture
def cached_traces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trace each model once: what differs here is the order of the parts, and tracing takes seconds."""
    real, traced = trace.MetaModel.trace, {}

    def once(model: trace.MetaModel) -> Any:
        key = (model.config.to_json_string(), str(model.dtype))
        if key not in traced:
            traced[key] = real(model)
        graph, specs = traced[key]
        return graph.clone(), specs

    monkeypatch.setattr(trace.MetaModel, "trace", once)


# The order of the parts.

ORDERS = [
    PARTS,
    PARTS[::-1],
    ("embed_tokens", "batchful", "tokenizer", "decode_batchless", "prefill_batchless"),
    ("tokenizer", "prefill_batchless", "batchful", "decode_batchless", "embed_tokens"),
    ("decode_batchless", "embed_tokens", "prefill_batchless", "tokenizer", "batchful"),
    ("batchful", "embed_tokens", "batchful", "tokenizer", "embed_tokens", *PARTS[1:3]),
]


@pytest.mark.usefixtures("cached_traces")
@pytest.mark.parametrize("variant", ["two_layers", "tied", "qwen2_mixed_windows"])
def test_the_parts_in_any_order_give_the_same_files_byte_for_byte(
    variant: str, checkpoint: Callable[[str], Path], artifact: Callable[[str], Path], tmp_path: Path
) -> None:
    expected = contents(artifact(variant))
    for number, order in enumerate(ORDERS):
        output = tmp_path / str(number)
        for count, part in enumerate(order, start=1):
            manifest = export(ExportRequest(str(checkpoint(variant)), output, (part,), check=False))
            assert set(manifest.missing_parts) == set(PARTS) - set(order[:count])
        assert contents(output) == expected, order


def test_every_part_alone_can_be_read_before_the_others_come(
    checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    for part in QUICK:
        output = tmp_path / part
        export(ExportRequest(str(checkpoint("two_layers")), output, (part,), check=False))
        assert read_manifest(output).parts.keys() == {part}
        with pytest.raises(ArtifactError, match=f"lacks {next(other for other in PARTS if other != part)}"):
            Artifact.open(output)


def test_the_command_exports_as_the_example_does(
    checkpoint: Callable[[str], Path], artifact: Callable[[str], Path], tmp_path: Path
) -> None:
    options = ("--model", checkpoint("one_layer"), "--output_dir", tmp_path, "--no_check")
    for part in PARTS:
        layers = ("--num_layers", 1) if part == "batchful" else ()
        ended = cleave("export", *options, "--export", part, *layers)
        assert ended.code == 0, ended
        missing = PARTS[PARTS.index(part) + 1 :]
        assert (f"still missing: {', '.join(missing)}" in ended.err) == bool(missing)
    assert contents(tmp_path) == contents(artifact("one_layer"))


def test_a_checked_export_says_how_far_it_is_from_transformers(
    checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    manifest = export(ExportRequest(str(checkpoint("one_layer")), tmp_path))
    assert manifest.check["tokens"] == 48
    assert 0 < manifest.check["relative_error"] < 1e-5
    assert read_manifest(tmp_path) == manifest


# What does not mix.


@pytest.fixture
def present(checkpoint: Callable[[str], Path], tmp_path: Path) -> Path:
    """An output_dir with some parts of gqa in float16, of its first two layers."""
    output = tmp_path / "output"
    parts = ("embed_tokens", "decode_batchless")
    export(ExportRequest(str(checkpoint("gqa")), output, parts, num_layers=2, dtype="float16", check=False))
    return output


def test_parts_of_two_checkpoints(present: Path, checkpoint: Callable[[str], Path]) -> None:
    before = contents(present)
    for parts in (("tokenizer",), PARTS):
        refused("another checkpoint", model=str(checkpoint("mha")), output_dir=present, parts=parts)
    assert contents(present) == before


def test_a_fine_tune_is_another_checkpoint(
    present: Path, checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    model = copy_of(checkpoint("gqa"), tmp_path / "tuned")
    tensors = load_file(model / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"] += 1
    save_file(tensors, model / "model.safetensors")
    refused("another checkpoint", model=str(model), output_dir=present, parts=("tokenizer",))


def test_a_copy_of_a_checkpoint_is_the_same_one(
    present: Path, checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    model = copy_of(checkpoint("gqa"), tmp_path / "copy")
    export(ExportRequest(str(model), present, ("tokenizer",), check=False))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"dtype": "float32"}, ("dtype float16", "float32")),
        ({"dtype": "bfloat16"}, ("dtype float16", "bfloat16")),
        ({"num_layers": 1}, ("num_layers 2", "1")),
        ({"num_layers": 3}, ("num_layers 2", "3")),
    ],
    ids=str,
)
@pytest.mark.parametrize("part", PARTS)
def test_parts_of_two_dtypes_or_depths(
    present: Path,
    checkpoint: Callable[[str], Path],
    options: dict[str, Any],
    words: tuple[str, ...],
    part: str,
) -> None:
    before = contents(present)
    refused(
        *words, "--output_dir", model=str(checkpoint("gqa")), output_dir=present, parts=(part,), **options
    )
    assert contents(present) == before


def test_what_is_left_out_is_as_the_present_parts_have_it(
    present: Path, checkpoint: Callable[[str], Path]
) -> None:
    for part in ("prefill_batchless", "tokenizer", "embed_tokens"):
        manifest = export(ExportRequest(str(checkpoint("gqa")), present, (part,), check=False))
        assert (manifest.dtype, manifest.num_layers) == ("float16", 2)
    assert {tensor.dtype for tensor in load_file(present / WEIGHTS).values()} == {np.dtype(np.float16)}


@pytest.mark.usefixtures("cached_traces")
def test_a_whole_export_replaces_everything(
    present: Path, checkpoint: Callable[[str], Path], artifact: Callable[[str], Path]
) -> None:
    export(ExportRequest(str(checkpoint("gqa")), present, check=False))
    assert contents(present) == contents(artifact("gqa"))
    manifest = export(
        ExportRequest(str(checkpoint("gqa")), present, dtype="float16", num_layers=1, check=False)
    )
    assert (manifest.dtype, manifest.num_layers) == ("float16", 1)
    Artifact.open(present).batchful_graph()


def test_files_that_no_part_has_any_more_are_gone(checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    """One layer of qwen2_mixed_windows has one attention spec, three of them two."""
    model = copy_of(checkpoint("qwen2_mixed_windows"), tmp_path / "model")
    output = tmp_path / "output"
    export(ExportRequest(str(model), output, check=False))
    assert (output / "decode_batchless_1.onnx").is_file()
    export(ExportRequest(str(model), output, num_layers=1, check=False))
    assert not list(output.glob("*_1.onnx"))
    (model / "generation_config.json").unlink()
    export(ExportRequest(str(model), output, ("tokenizer",), check=False))
    assert not (output / "generation_config.json").exists()
    assert {path.name for path in output.iterdir()} == {*read_manifest(output).files, "manifest.json"}


@pytest.mark.parametrize("text", ["", "{}", '{"format": 99}', "\x00"])
def test_a_manifest_that_cannot_be_read_stops_parts_and_not_a_whole_export(
    checkpoint: Callable[[str], Path], artifact: Callable[[str], Path], tmp_path: Path, text: str
) -> None:
    model, output = str(checkpoint("one_layer")), copy_of(artifact("one_layer"), tmp_path / "output")
    (output / "manifest.json").write_text(text)
    before = contents(output)
    with pytest.raises(ArtifactError, match="again"):
        export(ExportRequest(model, output, ("tokenizer",), check=False))
    assert contents(output) == before
    if text:  # once is enough: it traces
        return
    export(ExportRequest(model, output, check=False))
    assert contents(output) == contents(artifact("one_layer"))


@pytest.mark.parametrize("damage", ["missing", "truncated"])
def test_the_part_that_mends_damaged_weights_is_named(
    checkpoint: Callable[[str], Path], artifact: Callable[[str], Path], tmp_path: Path, damage: str
) -> None:
    model, output = str(checkpoint("one_layer")), copy_of(artifact("one_layer"), tmp_path / "output")
    if damage == "missing":
        (output / WEIGHTS).unlink()
    else:
        (output / WEIGHTS).write_bytes((output / WEIGHTS).read_bytes()[:-1])
    refused("export batchful again", model=model, output_dir=output, parts=("embed_tokens",))
    export(ExportRequest(model, output, ("batchful",), check=False))
    assert contents(output) == contents(artifact("one_layer"))


def test_a_check_needs_the_files_of_the_other_parts(
    checkpoint: Callable[[str], Path], artifact: Callable[[str], Path], tmp_path: Path
) -> None:
    output = copy_of(artifact("one_layer"), tmp_path / "output")
    (output / BATCHFUL).unlink()
    with pytest.raises(ExportError) as error:
        export(ExportRequest(str(checkpoint("one_layer")), output, ("tokenizer",)))
    assert_one_sentence(str(error.value), "", BATCHFUL, "missing")


def test_room_is_asked_for_the_layers_that_are_exported(
    checkpoint: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    monkeypatch.setattr(exporter, "require_space", lambda _, needed: asked.append(needed))
    for number in (1, 3):
        output = tmp_path / str(number)
        export(ExportRequest(str(checkpoint("gqa")), output, num_layers=number, check=False))
        written = sum(path.stat().st_size for path in output.iterdir())
        assert written < asked[-1] < written + (65 << 20)
    assert asked[-1] > asked[1]


# What the checkpoint may look like.


def without(manifest: Path, *names: str) -> dict[str, Any]:
    data = json.loads(manifest.read_text())
    return {name: value for name, value in data.items() if name not in names}


@pytest.mark.usefixtures("cached_traces")
def test_a_checkpoint_in_shards_gives_the_same_artifact(
    checkpoint: Callable[[str], Path], artifact: Callable[[str], Path], tmp_path: Path
) -> None:
    model, output = tmp_path / "shards", tmp_path / "output"
    whole = AutoModelForCausalLM.from_pretrained(checkpoint("gqa"), dtype=torch.float32)
    whole.save_pretrained(model, max_shard_size="100KB")
    for path in checkpoint("gqa").glob("*.json"):
        if not path.name.startswith("model"):
            (model / path.name).write_bytes(path.read_bytes())
    assert len(list(model.glob("*.safetensors"))) > 3
    export(ExportRequest(str(model), output, check=False))
    expected, got = contents(artifact("gqa")), contents(output)
    assert got is not None
    assert expected is not None
    assert got.keys() == expected.keys()
    for name in got.keys() - {"manifest.json"}:
        assert got[name] == expected[name], name
    assert without(output / "manifest.json", "source") == without(artifact("gqa") / "manifest.json", "source")


OLD_FORMS = {
    "gqa": {"rope_theta": 1e4, "rope_scaling": None, "torch_dtype": "float32"},
    "rope_linear": {"rope_theta": 1e4, "rope_scaling": {"type": "linear", "factor": 4.0}},
    "rope_llama3": {
        "rope_theta": 5e5,
        "rope_scaling": {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        },
    },
    "rope_yarn": {
        "rope_theta": 1e4,
        "rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128},
    },
}


@pytest.mark.usefixtures("cached_traces")
@pytest.mark.parametrize("variant", OLD_FORMS)
def test_a_config_of_transformers_4_gives_the_same_artifact(
    variant: str, checkpoint: Callable[[str], Path], artifact: Callable[[str], Path], tmp_path: Path
) -> None:
    model, output = copy_of(checkpoint(variant), tmp_path / "model"), tmp_path / "output"

    def to_4(config: dict[str, Any]) -> None:
        for name in ("rope_parameters", "dtype", "layer_types", "head_dim"):
            config.pop(name, None)
        config.update({"torch_dtype": "float32", "transformers_version": "4.40.0"} | OLD_FORMS[variant])

    edit_json(model / "config.json", to_4)
    parts = PARTS if variant == "gqa" else QUICK
    manifest = export(ExportRequest(str(model), output, parts, check=False))
    expected = read_manifest(artifact(variant))
    assert manifest.layer_specs == expected.layer_specs
    assert manifest.dtype == expected.dtype
    for name in {path.name for path in output.glob("*.onnx")} | ({WEIGHTS} if parts == PARTS else set()):
        assert (output / name).read_bytes() == (artifact(variant) / name).read_bytes(), name


def test_a_config_that_leaves_defaults_out(checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    """max_position_embeddings of Llama is 2,048 where config.json does not say."""
    model = copy_of(checkpoint("one_layer"), tmp_path / "model")
    edit_json(model / "config.json", lambda config: config.pop("max_position_embeddings"))
    export(ExportRequest(str(model), tmp_path / "output", check=False))
    with LLM(tmp_path / "output") as llm:
        assert llm.model.max_length == 2048


def test_a_checkpoint_that_ties_by_name_and_not_by_value_is_not_tied(
    checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    """transformers unties the two where both are there and differ."""
    model = copy_of(checkpoint("tied"), tmp_path / "model")
    tensors = load_file(model / "model.safetensors")
    generator = np.random.default_rng(0)
    embedding = tensors["model.embed_tokens.weight"]
    tensors["lm_head.weight"] = generator.normal(0, 0.15, embedding.shape).astype(np.float32)
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})
    assert export(ExportRequest(str(model), tmp_path / "output")).check["relative_error"] < 1e-5
    tensors["lm_head.weight"] = embedding
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})
    export(ExportRequest(str(model), tmp_path / "same", check=False))
    assert "lm_head.weight" not in load_file(tmp_path / "same" / WEIGHTS)


@pytest.mark.parametrize("given", [257, [257], [5, 257], [*range(256)]])
def test_an_eos_token_or_a_list_of_them_ends_an_answer(
    checkpoint: Callable[[str], Path], artifact: Callable[[str], Path], tmp_path: Path, given: Any
) -> None:
    model = copy_of(checkpoint("one_layer"), tmp_path / "model")
    for name in ("config.json", "generation_config.json"):
        edit_json(model / name, lambda config: config.update(eos_token_id=given))
    ends = frozenset(given if isinstance(given, list) else [given])
    export(ExportRequest(str(model), tmp_path / "tokenizer", ("tokenizer",), check=False))
    output = copy_of(artifact("one_layer"), tmp_path / "output")
    edit_json(
        output / "manifest.json",
        lambda manifest: manifest.update(fingerprint=read_manifest(tmp_path / "tokenizer").fingerprint),
    )
    export(ExportRequest(str(model), output, ("tokenizer",), check=False))
    with LLM(output) as llm:
        assert llm.model.eos_token_ids == ends
        for answer in llm.generate([[token] for token in range(20)], SamplingParams(max_tokens=30)):
            assert not ends & set(answer.token_ids[:-1])
            assert (answer.token_ids[-1] in ends) == (answer.finish_reason == "stop")


# What a trace may lose.


def test_an_operator_that_the_tracer_lost_is_refused(
    checkpoint: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = trace.simplify

    def losing(model: Any, weight_name: Callable[[str], str]) -> Any:
        simplified = real(model, weight_name)
        cut = next(node for node in simplified.graph if node.op_type == "CleaveAttention")
        cut.outputs[0].replace_all_uses_with(cut.inputs[0])
        simplified.graph.remove(cut, safe=True)
        return simplified

    monkeypatch.setattr(trace, "simplify", losing)
    model = str(checkpoint("two_layers"))
    refused("1 CleaveAttention operators for 2 layers", "[0]", model=model, output_dir=tmp_path / "output")
    assert not (tmp_path / "output").exists()


def test_a_layer_that_never_attends_is_refused(
    checkpoint: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = trace._Recorder.attend

    def forget(recorder: Any, module: torch.nn.Module, *arguments: Any, **options: Any) -> Any:
        result = real(recorder, module, *arguments, **options)
        recorder.specs.pop(1, None)
        return result

    monkeypatch.setattr(trace._Recorder, "attend", forget)
    refused("layers [1]", model=str(checkpoint("two_layers")), output_dir=tmp_path / "output", parts=QUICK)


def test_a_trace_leaves_transformers_as_it_was(checkpoint: Callable[[str], Path]) -> None:
    """The rotary encoding that is taken out for the trace is back, so plain transformers works after it."""
    from transformers.models.llama import modeling_llama

    from cleave.export.config import load_config

    before = modeling_llama.apply_rotary_pos_emb
    model = trace.MetaModel(load_config(checkpoint("one_layer")), "float32", "LlamaForCausalLM")
    attention = model.config._attn_implementation
    model.attention_specs()
    assert modeling_llama.apply_rotary_pos_emb is before
    assert model.config._attn_implementation == attention


def test_all_orders_of_two_parts_agree(checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    for pair in itertools.combinations(QUICK, 2):
        seen = []
        for order in (pair, pair[::-1]):
            output = tmp_path / "-".join(order)
            for part in order:
                export(ExportRequest(str(checkpoint("two_layers")), output, (part,), check=False))
            seen.append(contents(output))
        assert seen[0] == seen[1]
