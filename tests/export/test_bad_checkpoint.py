"""Checkpoints that cannot be exported: one clear sentence, and nothing is left behind."""

from __future__ import annotations

import contextlib
import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command import assert_one_sentence, contents
from damage import copy_of, edit_json, write_bomb
from safetensors.numpy import load_file, save_file

from cleave.errors import CheckpointError, CleaveError, ExportError
from cleave.export.checkpoint import Checkpoint
from cleave.export.exporter import ExportRequest, export
from cleave.export.families import SUPPORTED
from cleave.export.tensorfile import TensorFileError, read_header

WEIGHTS = "model.safetensors"


@pytest.fixture
def model(checkpoint: Callable[[str], Path], tmp_path: Path) -> Path:
    """A small checkpoint that a test may spoil."""
    return copy_of(checkpoint("one_layer"), tmp_path / "model")


@pytest.fixture(params=["no folder", "artifact"])
def refuse(
    request: pytest.FixtureRequest, artifact: Callable[[str], Path], tmp_path: Path
) -> Callable[..., str]:
    """Export what cannot be, into a new folder and over an artifact, which has to stay as it is."""
    output = tmp_path / "deep" / "output"
    if request.param == "artifact":
        copy_of(artifact("one_layer"), output)

    def refuse(model: object, *words: str, kind: type[CleaveError] = CleaveError, **options: Any) -> str:
        if output.exists():
            pretend_exported_from(Path(model), output)
        before = contents(tmp_path / "deep")
        with pytest.raises(kind) as refused:
            export(ExportRequest(str(model), output, check=False, **options))
        assert_one_sentence(str(refused.value), "", *words)
        assert contents(tmp_path / "deep") == before
        return str(refused.value)

    return refuse


def pretend_exported_from(model: Path, output: Path) -> None:
    """Let the artifact be one of this very checkpoint, where it can be read so far."""
    with contextlib.suppress(CleaveError, OSError):
        fingerprint = Checkpoint(model).fingerprint
        edit_json(output / "manifest.json", lambda manifest: manifest.update(fingerprint=fingerprint))


def set_config(model: Path, **changes: Any) -> None:
    edit_json(model / "config.json", lambda config: config.update(changes))


# What is no checkpoint.


def test_a_missing_directory(refuse: Callable[..., str], tmp_path: Path) -> None:
    refuse(tmp_path / "nowhere", "there is no model directory", "nowhere", kind=CheckpointError)
    refuse("./model_files/nowhere", "there is no model directory", kind=CheckpointError)


def test_a_file_in_place_of_a_directory(refuse: Callable[..., str], model: Path) -> None:
    refuse(model / WEIGHTS, "is a file", "config.json", kind=CheckpointError)


def test_a_directory_without_config(refuse: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    refuse(tmp_path / "empty", "is not a checkpoint", "config.json", kind=CheckpointError)


def test_an_artifact_in_place_of_a_checkpoint(
    refuse: Callable[..., str], artifact: Callable[[str], Path]
) -> None:
    refuse(artifact("one_layer"), "is not a checkpoint", "artifact", kind=CheckpointError)


@pytest.mark.parametrize("text", [b"{", b"", b"\xff\xfe{}", b"[" * 100_000, b"[1, 2]", b"null"])
def test_a_config_that_is_no_json_object(refuse: Callable[..., str], model: Path, text: bytes) -> None:
    (model / "config.json").write_bytes(text)
    refuse(model, "config.json", "JSON", kind=CheckpointError)


def test_a_hub_id_without_network(refuse: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    refuse("nobody/nothing", "nobody/nothing", "Hugging Face hub", kind=CheckpointError)
    refuse("two words/what?", "Hugging Face hub", kind=CheckpointError)


# Architectures.


@pytest.mark.parametrize(
    ("architecture", "what"),
    [
        ("MixtralForCausalLM", "mixture of experts"),
        ("Qwen3MoeForCausalLM", "mixture of experts"),
        ("DeepseekV3ForCausalLM", "mixture of experts"),
        ("T5ForConditionalGeneration", "encoder-decoder"),
        ("BartForConditionalGeneration", "encoder-decoder"),
        ("MambaForCausalLM", "state-space"),
        ("Mamba2ForCausalLM", "state-space"),
        ("RwkvForCausalLM", "state-space"),
        ("JambaForCausalLM", ""),
        ("GPT2LMHeadModel", ""),
    ],
)
def test_an_architecture_that_cannot_be_cut(
    refuse: Callable[..., str], model: Path, architecture: str, what: str
) -> None:
    set_config(model, architectures=[architecture])
    refuse(model, architecture, what, *SUPPORTED, kind=CheckpointError)


@pytest.mark.parametrize("given", [None, [], "LlamaForCausalLM", [None], {"LlamaForCausalLM": 1}])
def test_architectures_that_name_nothing(refuse: Callable[..., str], model: Path, given: object) -> None:
    set_config(model, architectures=given)
    refuse(model, *SUPPORTED, kind=CheckpointError)


def test_a_model_type_of_another_architecture(refuse: Callable[..., str], model: Path) -> None:
    set_config(model, model_type="mixtral")
    refuse(model, "LlamaForCausalLM", "mixtral", kind=CheckpointError)


@pytest.mark.parametrize("method", ["fp8", "bitsandbytes", "compressed-tensors"])
def test_a_quantised_checkpoint(refuse: Callable[..., str], model: Path, method: str) -> None:
    set_config(model, quantization_config={"quant_method": method, "bits": 4})
    refuse(model, "quantised", method, kind=CheckpointError)


def test_code_in_a_checkpoint_is_never_run_nor_asked_about(
    refuse: Callable[..., str], model: Path, tmp_path: Path
) -> None:
    mark = tmp_path / "mark"
    (model / "evil.py").write_text(f"import pathlib\npathlib.Path({str(mark)!r}).touch()\n")
    set_config(model, model_type="evil", auto_map={"AutoConfig": "evil.Evil"})
    refuse(model, "config.json", kind=CheckpointError)
    assert not mark.exists()


# Configs whose numbers do not fit.


@pytest.mark.parametrize(
    "changes",
    [
        {"hidden_size": "abc"},
        {"hidden_size": 32},
        {"hidden_size": -64},
        {"num_attention_heads": 0},
        {"num_attention_heads": 5, "num_key_value_heads": 5},
        {"num_key_value_heads": 3},
        {"num_key_value_heads": 0},
        {"head_dim": 7},
        {"vocab_size": -5},
        {"vocab_size": 300},
        {"intermediate_size": 95},
        {"num_hidden_layers": None},
        {"num_hidden_layers": 0},
        {"num_hidden_layers": "1"},
        {"num_hidden_layers": 2},
        {"hidden_act": "nonsense"},
        {"model_type": "nonsense"},
        {"model_type": None},
        {"tie_word_embeddings": "perhaps"},
    ],
    ids=str,
)
def test_a_config_that_does_not_fit(refuse: Callable[..., str], model: Path, changes: dict[str, Any]) -> None:
    set_config(model, **changes)
    refuse(model)


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 8, "long_factor": [1.0] * 8},
        {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0},
        {"rope_type": "nonsense", "rope_theta": 1e4},
        {"rope_type": "llama3", "rope_theta": 1e4, "factor": 2.0},
        {"rope_type": "linear", "rope_theta": 1e4, "factor": -1.0},
        {"rope_type": "linear", "rope_theta": 1e4},
    ],
    ids=lambda rope: rope["rope_type"],
)
def test_a_rope_that_the_attention_server_lacks(
    refuse: Callable[..., str], model: Path, rope: dict[str, Any]
) -> None:
    set_config(model, rope_parameters=rope)
    refuse(model)


# Weights.


@pytest.mark.parametrize("keep", [0, 7, 8, 100, -100, -1])
def test_a_truncated_safetensors_file(refuse: Callable[..., str], model: Path, keep: int) -> None:
    data = (model / WEIGHTS).read_bytes()
    (model / WEIGHTS).write_bytes(data[:keep])
    refuse(model, WEIGHTS)


def write_header(path: Path, header: object, data: bytes = b"") -> None:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


@pytest.mark.parametrize(
    "header",
    [
        b"{",
        b"\xff",
        b"[" * 100_000,
        [],
        {"a": 1},
        {"a": {"dtype": "F32", "shape": [4]}},
        {"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 12]}},
        {"a": {"dtype": "F32", "shape": [-2, -2], "data_offsets": [0, 16]}},
        {"a": {"dtype": "F32", "shape": [4], "data_offsets": [16, 0]}},
        {"a": {"dtype": "F32", "shape": [4], "data_offsets": [-16, 0]}},
        {"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, float("inf")]}},
        {"a": {"dtype": "F32", "shape": [4], "data_offsets": [0]}},
        {},
        {"__metadata__": {"format": "pt"}},
    ],
    ids=lambda header: str(header)[:60],
)
def test_a_safetensors_header_that_lies(refuse: Callable[..., str], model: Path, header: object) -> None:
    write_header(model / WEIGHTS, header, bytes(16))
    if header not in ({}, {"__metadata__": {"format": "pt"}}):  # which are true, and of no use
        with pytest.raises(TensorFileError, match=WEIGHTS):
            read_header(model / WEIGHTS)
    refuse(model, "safetensors")


@pytest.mark.parametrize("name", [WEIGHTS, "pytorch_model.bin", "consolidated.00.pth", "model.pkl"])
def test_a_pickle_is_refused_without_being_opened(
    refuse: Callable[..., str], model: Path, tmp_path: Path, name: str
) -> None:
    (model / WEIGHTS).unlink()
    write_bomb(model / name, tmp_path / "mark")
    refuse(model, name, "safetensors")
    assert not (tmp_path / "mark").exists()


def test_no_weights_at_all(refuse: Callable[..., str], model: Path) -> None:
    (model / WEIGHTS).unlink()
    refuse(model, "safetensors", kind=CheckpointError)


def test_an_index_that_names_a_missing_shard(refuse: Callable[..., str], model: Path) -> None:
    weight_map = {"a": WEIGHTS, "b": "model-00002-of-00002.safetensors"}
    (model / f"{WEIGHTS}.index.json").write_text(json.dumps({"weight_map": weight_map}))
    refuse(model, "lacks model-00002-of-00002.safetensors", "index", kind=CheckpointError)


@pytest.mark.parametrize("where", ["../model.safetensors", "{}/model.safetensors", "sub/../../x.safetensors"])
def test_an_index_that_leaves_the_folder(
    refuse: Callable[..., str], model: Path, checkpoint: Callable[[str], Path], where: str
) -> None:
    shard = where.format(checkpoint("one_layer"))
    (model.parent / WEIGHTS).write_bytes((model / WEIGHTS).read_bytes())
    (model / f"{WEIGHTS}.index.json").write_text(json.dumps({"weight_map": {"a": shard}}))
    refuse(model, "points out of the checkpoint", kind=CheckpointError)


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"weight_map": [1]}', '{"weight_map": {"a": ["b"]}}'])
def test_an_index_that_is_none(refuse: Callable[..., str], model: Path, text: str) -> None:
    (model / f"{WEIGHTS}.index.json").write_text(text)
    refuse(model, "index", kind=CheckpointError)


@pytest.mark.parametrize(
    "lost", ["model.embed_tokens.weight", "lm_head.weight", "model.layers.0.mlp.down_proj.weight"]
)
def test_a_tensor_that_is_lacking(refuse: Callable[..., str], model: Path, lost: str) -> None:
    tensors = load_file(model / WEIGHTS)
    del tensors[lost]
    save_file(tensors, model / WEIGHTS)
    refuse(model, "lacks the tensor", lost, kind=CheckpointError)


@pytest.mark.parametrize("name", ["model.embed_tokens.weight", "model.layers.0.mlp.down_proj.weight"])
def test_a_tensor_of_another_shape(refuse: Callable[..., str], model: Path, name: str) -> None:
    tensors = load_file(model / WEIGHTS)
    tensors[name] = np.ascontiguousarray(tensors[name].T)
    save_file(tensors, model / WEIGHTS)
    refuse(model, name, str(list(tensors[name].shape)))


@pytest.mark.parametrize("name", ["model.embed_tokens.weight", "model.layers.0.mlp.down_proj.weight"])
def test_a_tensor_of_whole_numbers(refuse: Callable[..., str], model: Path, name: str) -> None:
    tensors = load_file(model / WEIGHTS)
    tensors[name] = tensors[name].astype(np.int8)
    save_file(tensors, model / WEIGHTS)
    refuse(model, name, "I8", dtype="float32")


@pytest.mark.parametrize("beside", [1.0, np.inf], ids=["", "beside an infinity"])
def test_values_beyond_float16(refuse: Callable[..., str], model: Path, beside: float) -> None:
    tensors = load_file(model / WEIGHTS)
    name = "model.layers.0.mlp.up_proj.weight"
    tensors[name][0, :2] = [70_000.0, beside]
    save_file(tensors, model / WEIGHTS)
    # Every part: into an artifact that is there already another dtype comes only as a whole.
    refuse(model, name, "float16", "bfloat16", kind=ExportError, dtype="float16")


def test_weights_that_are_no_numbers(model: Path, tmp_path: Path) -> None:
    tensors = load_file(model / WEIGHTS)
    tensors["model.layers.0.mlp.down_proj.weight"][0, 0] = np.nan
    save_file(tensors, model / WEIGHTS)
    with pytest.raises(ExportError) as error:
        export(ExportRequest(str(model), tmp_path / "output"))
    assert_one_sentence(str(error.value), str(model), "no numbers, in transformers too", "--no_check")
    assert contents(tmp_path / "output") is None


# Tokenizer.


@pytest.mark.parametrize("text", [b"", b"{", b'{"version": "1.0"}', b"\xff"])
def test_a_tokenizer_that_cannot_be_read(refuse: Callable[..., str], model: Path, text: bytes) -> None:
    (model / "tokenizer.json").write_bytes(text)
    refuse(model, "tokenizer", kind=CheckpointError, parts=("tokenizer",))


def test_no_tokenizer(refuse: Callable[..., str], model: Path) -> None:
    for path in model.glob("tokenizer*"):
        path.unlink()
    refuse(model, "has no tokenizer", "tokenizer.json", kind=CheckpointError, parts=("tokenizer",))


@pytest.mark.parametrize("text", ["", "[1]", '{"eos_token_id": "end"}', '{"eos_token_id": [[1]]}'])
def test_a_generation_config_that_cannot_be_read(refuse: Callable[..., str], model: Path, text: str) -> None:
    (model / "generation_config.json").write_text(text)
    refuse(model, "generation_config.json", kind=CheckpointError, parts=("tokenizer",))


# Requests.


@pytest.mark.parametrize("number", [0, -1, 2, 1000])
def test_layers_that_are_not_there(refuse: Callable[..., str], model: Path, number: int) -> None:
    refuse(model, f"num_layers is {number}", "1 layers", kind=ExportError, num_layers=number)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"parts": ("batchful", "lm_head")}, ("lm_head", "batchful", "prefill_batchless", "tokenizer")),
        ({"parts": ()}, ("batchful",)),
        ({"dtype": "fp16"}, ("fp16", "float32", "float16", "bfloat16")),
        ({"device": "tpu"}, ("tpu", "cpu", "cuda")),
    ],
    ids=str,
)
def test_names_that_are_not_known(
    refuse: Callable[..., str], model: Path, options: dict[str, Any], words: tuple[str, ...]
) -> None:
    refuse(model, *words, kind=ExportError, **options)


def test_paths_may_be_given_as_text_and_as_paths(model: Path, tmp_path: Path) -> None:
    request = ExportRequest(model, str(tmp_path / "output"), ("tokenizer",), check=False)  # type: ignore[arg-type]
    assert export(request).source == str(model)
    assert (tmp_path / "output" / "tokenizer.json").is_file()
