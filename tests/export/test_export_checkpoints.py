"""What a checkpoint may look like for one and the same artifact, and what its trace may not lose."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from command import contents
from damage import copy_of, edit_json
from exports import refused
from safetensors.numpy import load_file, save_file
from transformers import AutoModelForCausalLM

from cleave import LLM, SamplingParams
from cleave.export import trace
from cleave.export.artifact import WEIGHTS, read_manifest
from cleave.export.exporter import ExportRequest, export
from cleave.export.manifest import PARTS

QUICK = tuple(part for part in PARTS if part != "batchful")


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
