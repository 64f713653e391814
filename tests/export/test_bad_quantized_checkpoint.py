"""Quantised checkpoints that are not read, or not as they are: one sentence each."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoints import make_checkpoint
from command import assert_one_sentence, contents
from damage import copy_of, edit_json
from packed import LINEAR, Packing, pack_checkpoint
from safetensors.torch import load_file, save_file

from cleave.errors import CheckpointError, CleaveError, ExportError
from cleave.export.artifact import WEIGHTS
from cleave.export.checkpoint import Checkpoint
from cleave.export.exporter import ExportRequest, export
from cleave.export.quantized_checkpoint import QuantizedCheckpoint
from cleave.export.tensorfile import read_header

UP = "model.layers.1.mlp.up_proj"


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("plain")
    return make_checkpoint(folder, num_hidden_layers=2, intermediate_size=128, vocab_size=304)


@pytest.fixture(scope="module")
def packed(plain: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[Packing], Path]:
    made: dict[Packing, Path] = {}

    def get(packing: Packing) -> Path:
        if packing not in made:
            made[packing], _ = pack_checkpoint(plain, tmp_path_factory.mktemp("packed"), packing)
        return made[packing]

    return get


@pytest.fixture
def model(packed: Callable[[Packing], Path], tmp_path: Path) -> Callable[..., Path]:
    """A quantised checkpoint that a test may spoil."""

    def get(**packing: Any) -> Path:
        return copy_of(packed(Packing(**packing)), tmp_path / "model")

    return get


def refused(model: Path, *words: str, kind: type[CleaveError] = CheckpointError, **options: Any) -> None:
    output = model.parent / "output"
    with pytest.raises(kind) as error:
        export(ExportRequest(str(model), output, check=False, **options))
    assert_one_sentence(str(error.value), "", *words)
    assert contents(output) is None


def configure(model: Path, **changes: Any) -> None:
    edit_json(model / "config.json", lambda config: config["quantization_config"].update(changes))


def change(model: Path, edit: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(model / "model.safetensors")
    edit(tensors)
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"quant_method": "fp8"}, ("fp8", "gptq and awq", "unquantised")),
        ({"quant_method": None}, ("None", "gptq and awq")),
        ({"bits": 8}, ("8 bits", "reads 4 bits")),
        ({"bits": 3}, ("3 bits", "reads 4 bits")),
        ({"bits": None}, ("None bits", "reads 4 bits")),
        ({"bits": True}, ("True bits", "reads 4 bits")),
        ({"checkpoint_format": "marlin"}, ("'marlin'", "gptq and gptq_v2")),
        ({"group_size": 48}, ("48", "32, 64, 128", "-1")),
        ({"group_size": 1024}, ("1024", "32, 64, 128")),
        ({"group_size": "many"}, ("'many'", "32, 64, 128")),
        ({"group_size": None}, ("None", "32, 64, 128")),
        ({"group_size": 64}, ("qzeros", "groups of 64")),
        ({"dynamic": {"+:.*up.*": {"bits": 8}}}, ("bits 8", ".*up.*")),
        ({"dynamic": {"+:.*up.*": {"group_size": 64}}}, ("group_size 64", ".*up.*")),
    ],
    ids=str,
)
def test_a_gptq_config(model: Callable[..., Path], changes: dict[str, Any], words: tuple[str, ...]) -> None:
    folder = model()
    configure(folder, **changes)
    refused(folder, *words)


@pytest.mark.parametrize("version", ["gemv", "gemv_fast", "marlin", "llm-awq"])
def test_an_awq_version(model: Callable[..., Path], version: str) -> None:
    folder = model(method="awq", version="gemm")
    configure(folder, version=version)
    refused(folder, version, "reads gemm")


def test_an_lm_head_that_is_quantised_stays_so(plain: Path, tmp_path: Path) -> None:
    folder, _ = pack_checkpoint(plain, tmp_path, Packing(), only=(*LINEAR, "lm_head"))
    refused(
        folder,
        "lm_head",
        "quantised already",
        "--no_quantize_lm_head",
        kind=ExportError,
        quantize_lm_head=False,
    )


def test_a_config_that_is_no_object(model: Callable[..., Path]) -> None:
    folder = model()
    edit_json(folder / "config.json", lambda config: config.update(quantization_config="gptq"))
    refused(folder, "quantization_config", "'gptq'")


@pytest.mark.parametrize("suffix", ["qweight", "qzeros", "scales"])
def test_a_tensor_that_is_missing(model: Callable[..., Path], suffix: str) -> None:
    folder = model()
    change(folder, lambda tensors: tensors.pop(f"{UP}.{suffix}"))
    refused(folder, UP, suffix)


def test_a_missing_g_idx(model: Callable[..., Path]) -> None:
    folder = model(act_order=True)
    change(folder, lambda tensors: tensors.pop(f"{UP}.g_idx"))
    refused(folder, UP, "g_idx", "desc_act")


def test_no_g_idx_where_none_is_needed(packed: Callable[[Packing], Path], model: Callable[..., Path]) -> None:
    folder = model()
    before = Checkpoint(folder).ready
    assert before is not None
    expected = before.dequantize(f"{UP}.weight")
    change(folder, lambda tensors: [tensors.pop(name) for name in list(tensors) if "g_idx" in name])
    after = Checkpoint(folder).ready
    assert after is not None
    assert np.array_equal(after.dequantize(f"{UP}.weight"), expected)


@pytest.mark.parametrize(
    ("suffix", "wrong"),
    [
        ("qweight", lambda tensor: tensor[:, :-1]),
        ("qweight", lambda tensor: tensor[:-4]),
        ("qweight", lambda tensor: tensor.to(torch.int64)),
        ("qweight", lambda tensor: tensor.flatten()),
        ("qzeros", lambda tensor: tensor[:1]),
        ("qzeros", lambda tensor: tensor.float()),
        ("scales", lambda tensor: tensor[:, :8]),
        ("scales", lambda tensor: tensor.T),
        ("scales", lambda tensor: tensor.double()),
        ("scales", lambda tensor: tensor * torch.nan),
        ("g_idx", lambda tensor: tensor[:-1]),
        ("g_idx", lambda tensor: tensor + 1),
        ("g_idx", lambda tensor: tensor - 1),
        ("g_idx", lambda tensor: tensor.to(torch.int64)),
    ],
)
def test_a_tensor_that_does_not_fit(model: Callable[..., Path], suffix: str, wrong: Any) -> None:
    folder = model()

    def spoil(tensors: dict[str, torch.Tensor]) -> None:
        tensors[f"{UP}.{suffix}"] = wrong(tensors[f"{UP}.{suffix}"]).contiguous()

    change(folder, spoil)
    refused(folder, UP, kind=CleaveError)


def test_a_matrix_of_another_size_than_the_config_asks_for(model: Callable[..., Path]) -> None:
    folder = model()
    edit_json(folder / "config.json", lambda config: config.update(intermediate_size=256))
    refused(folder, "gate_proj", "config asks for", kind=ExportError)


def test_a_config_without_packed_tensors(plain: Path, tmp_path: Path) -> None:
    folder = copy_of(plain, tmp_path / "model")
    config = Packing().config()
    edit_json(folder / "config.json", lambda whole: whole.update(quantization_config=config))
    refused(folder, "no tensor qweight", "quantization_config")


def test_a_bias_that_would_be_lost(model: Callable[..., Path]) -> None:
    folder = model()
    change(folder, lambda tensors: tensors.update({f"{UP}.bias": torch.zeros(128)}))
    export(ExportRequest(str(folder), folder.parent / "artifact", check=False))
    change(folder, lambda tensors: tensors.update({f"{UP}.bias": torch.ones(128)}))
    refused(folder, f"{UP}.bias", "not zero")


def test_quantising_twice(model: Callable[..., Path]) -> None:
    folder = model()
    refused(folder, "quantised already", "--quantize", kind=ExportError, quantize="int8")
    refused(folder, "groups of 32", "--group_size", kind=ExportError, group_size=64)


# What is taken over in another form, and says so.


def exported(folder: Path, caplog: pytest.LogCaptureFixture) -> tuple[set[str], str]:
    """(names of the matrices that stay quantised, what was said)."""
    with caplog.at_level(logging.WARNING, logger="cleave"):
        manifest = export(ExportRequest(str(folder), folder.parent / "artifact", check=False))
    assert manifest.quantization is not None
    said = "\n".join(record.getMessage() for record in caplog.records if record.name == "cleave")
    return {name for tensor in manifest.quantization.tensors for name, _ in tensor.members}, said


def test_a_layer_that_was_left_out(
    model: Callable[..., Path], plain: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = model(act_order=True)
    kept = load_file(plain / "model.safetensors")[f"{UP}.weight"]

    def restore(tensors: dict[str, torch.Tensor]) -> None:
        for suffix in ("qweight", "qzeros", "scales", "g_idx"):
            del tensors[f"{UP}.{suffix}"]
        tensors[f"{UP}.weight"] = kept

    change(folder, restore)
    quantised, said = exported(folder, caplog)
    assert len(quantised) == 2 * (len(LINEAR) - 1)
    assert not {name for name in quantised if "up_proj" in name}
    assert "mlp.up_proj is quantised in some layers only" in said
    stored = read_header(folder.parent / "artifact" / WEIGHTS)
    assert {stored[f"model.layers.{layer}.mlp.up_proj.weight"].dtype for layer in range(2)} == {"F32"}
    ready = Checkpoint(folder).ready
    assert isinstance(ready, QuantizedCheckpoint)
    written = np.fromfile(
        stored["model.layers.0.mlp.up_proj.weight"].file,
        np.float32,
        128 * 64,
        offset=stored["model.layers.0.mlp.up_proj.weight"].offset,
    )
    assert np.array_equal(written.reshape(128, 64), ready.dequantize("model.layers.0.mlp.up_proj.weight"))


def test_groups_of_different_sizes(model: Callable[..., Path], caplog: pytest.LogCaptureFixture) -> None:
    folder = model(act_order=True, sizes_differ=True)
    quantised, said = exported(folder, caplog)
    assert quantised == set()
    assert "groups of different sizes" in said
    assert "down_proj" in said


def test_nothing_is_said_of_what_is_mapped_as_it_is(
    model: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    quantised, said = exported(model(act_order=True), caplog)
    assert len(quantised) == 2 * len(LINEAR)
    assert said == ""


def test_what_the_config_says_of_the_checkpoint(packed: Callable[[Packing], Path]) -> None:
    for packing in (Packing(), Packing("awq", "gemm")):
        folder = packed(packing)
        assert json.loads((folder / "config.json").read_text())["quantization_config"]
        checkpoint = Checkpoint(folder)
        assert checkpoint.dtype == "float32"  # of what is not packed
