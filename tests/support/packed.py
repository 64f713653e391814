"""GPTQ and AWQ checkpoints, packed by the formats' definitions and independently of the reader."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
AWQ_PLACES = {0: 0, 2: 1, 4: 2, 6: 3, 1: 4, 3: 5, 5: 6, 7: 7}
"""Which four bits of an int32, counted from the lowest, hold which of eight neighbours."""


@dataclass(frozen=True, slots=True)
class Packing:
    """How to quantise and pack."""

    method: str = "gptq"
    version: str = "gptq"
    group_size: int = 32
    symmetric: bool = False
    act_order: bool = False
    sizes_differ: bool = False
    """Act-order with groups of different sizes."""
    scale_dtype: torch.dtype = torch.float16

    def config(self) -> dict[str, Any]:
        """The entry quantization_config of config.json."""
        shared = {"quant_method": self.method, "bits": 4, "group_size": self.group_size}
        if self.method == "awq":
            return shared | {"version": self.version, "zero_point": True, "modules_to_not_convert": None}
        return shared | {
            "checkpoint_format": self.version,
            "desc_act": self.act_order,
            "sym": self.symmetric,
        }


def into_int32(values: torch.Tensor, places: dict[int, int]) -> torch.Tensor:
    """[.., 8 n] of 0 to 15 -> [.., n] int32; neighbour i goes to the four bits `places[i]`."""
    packed = torch.zeros(*values.shape[:-1], values.shape[-1] // 8, dtype=torch.int64)
    for neighbour, place in places.items():
        packed += values[..., neighbour::8].to(torch.int64) * 16**place
    return torch.where(packed >= 2**31, packed - 2**32, packed).to(torch.int32)


def quantize(
    weight: torch.Tensor, group_of: torch.Tensor, packing: Packing
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """[out, in] -> values [out, in], zeros [out, groups], scales [out, groups]: round to nearest."""
    groups = int(group_of.max()) + 1
    scales = torch.zeros(len(weight), groups, dtype=torch.float64)
    zeros = torch.zeros(len(weight), groups, dtype=torch.int64)
    values = torch.zeros(weight.shape, dtype=torch.int64)
    for group in range(groups):
        members = weight[:, group_of == group].double()
        low, high = members.amin(1).clamp(max=0), members.amax(1).clamp(min=0)
        if packing.symmetric:
            scale = members.abs().amax(1) / 7
            zero = torch.full_like(low, 8)
        else:
            scale = (high - low) / 15
            zero = (-low / scale).round().clamp(0, 15)
        scale = scale.to(packing.scale_dtype).double()
        scales[:, group], zeros[:, group] = scale, zero.long()
        rounded = (members / scale[:, None]).round() + zero[:, None]
        values[:, group_of == group] = rounded.clamp(0, 15).long()
    return values, zeros, scales


def pack(
    weight: torch.Tensor, packing: Packing, seed: int = 0
) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """(tensors of a quantised linear layer, the matrix [out, in] that they stand for, in float64)."""
    inputs = weight.shape[1]
    size = inputs if packing.group_size == -1 else packing.group_size
    group_of = torch.arange(inputs) // size
    if packing.act_order:
        group_of = group_of[torch.randperm(inputs, generator=torch.Generator().manual_seed(seed))]
    if packing.sizes_differ:
        group_of[int((group_of == 0).nonzero()[0])] = 1
    values, zeros, scales = quantize(weight, group_of, packing)
    meant = (values - zeros[:, group_of]).double() * scales[:, group_of]
    stored = scales.T.contiguous().to(packing.scale_dtype)
    if packing.method == "awq":
        return {
            "qweight": into_int32(values.T, AWQ_PLACES),
            "qzeros": into_int32(zeros.T, AWQ_PLACES),
            "scales": stored,
        }, meant
    in_turn = {place: place for place in range(8)}
    stored_zeros = zeros if packing.version == "gptq_v2" else (zeros - 1) % 16
    return {
        "qweight": into_int32(values, in_turn).T.contiguous(),
        "qzeros": into_int32(stored_zeros.T, in_turn),
        "scales": stored,
        "g_idx": group_of.to(torch.int32),
    }, meant


def pack_checkpoint(
    folder: Path, to: Path, packing: Packing, *, only: tuple[str, ...] = LINEAR
) -> tuple[Path, Path]:
    """Quantise a float checkpoint of one file. (The quantised one, the same with the weights it stands for.)

    `only`: the linear layers to quantise, by parts of their names.
    """
    packed_folder, plain_folder = to / "packed", to / "plain"
    packed: dict[str, torch.Tensor] = {}
    plain: dict[str, torch.Tensor] = {}
    for name, tensor in sorted(load_file(folder / "model.safetensors").items()):
        module = name.removesuffix(".weight")
        if name.endswith(".weight") and any(part in name for part in only):
            # What reads one input is quantised in one order, as quantisers do: they go by the activations.
            reads = module
            for kind, first in (("k_proj", "q_proj"), ("v_proj", "q_proj"), ("up_proj", "gate_proj")):
                reads = reads.replace(kind, first)
            seed = sum(map(ord, reads))
            tensors, meant = pack(tensor, packing, seed)
            packed |= {f"{module}.{suffix}": value for suffix, value in tensors.items()}
            plain[name] = meant.float()
        else:
            packed[name] = plain[name] = tensor
    for where, tensors, changes in (
        (packed_folder, packed, {"quantization_config": packing.config()}),
        (plain_folder, plain, {"dtype": "float32"}),
    ):
        where.mkdir(parents=True)
        for file in folder.iterdir():
            if file.suffix != ".safetensors":
                (where / file.name).write_bytes(file.read_bytes())
        config = json.loads((folder / "config.json").read_text("utf-8"))
        (where / "config.json").write_text(json.dumps(config | changes), "utf-8")
        save_file(tensors, where / "model.safetensors", metadata={"format": "pt"})
    return packed_folder, plain_folder
