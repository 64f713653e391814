"""A checkpoint that is quantised already, GPTQ or AWQ: its matrices as an artifact has them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt

from cleave.errors import CheckpointError
from cleave.export.packed_linear import SUFFIXES, PackedLinear
from cleave.export.quantized import GROUP_SIZES, GroupedInt4
from cleave.export.quantized_checkpoint_config import WHOLE_ROW, QuantizationConfig
from cleave.export.tensorfile import StoredTensor

_LAYER = re.compile(r"(?<=\.)\d+(?=\.)")
_ONE_INPUT = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
"""Layers of one module that read the same activations, and so mostly have the same order."""
_Order = npt.NDArray[np.int32]


class QuantizedCheckpoint:
    """The quantised linear layers of a checkpoint: the exporter takes them over, and quantises none again.

    What is quantised is seen by the tensors, not by lists of modules in the config: a layer with a plain
    weight stayed as it was. Matrices have the names of an unquantised checkpoint,
    "model.layers.0.mlp.up_proj.weight".

    All layers share one middle piece, so a kind of matrix is quantised in all layers or in none. Where it is
    in some of them only, or where the groups of one are of different sizes, it is dequantised in all.
    """

    method = "int4"

    def __init__(
        self, config: QuantizationConfig, tensors: Mapping[str, StoredTensor], *, folder: Path
    ) -> None:
        """`tensors` are all of the checkpoint. Headers are compared, and every g_idx is read.

        Raises CheckpointError where the tensors of a quantised layer do not fit together.
        """
        self.config = config
        linears = _find(tensors, config)
        if not linears:
            raise CheckpointError(
                f"{folder} says that it is quantised ({config}), and has no tensor qweight; "
                "give its quantised weights, or take quantization_config out of config.json"
            )
        for linear in linears.values():
            linear.check()
        plain = {_kind(name) for name in tensors}
        partial = {_kind(name) for name in linears} & plain
        orders = {name: _order(linear) for name, linear in linears.items()}
        uneven = {_kind(name) for name, order in orders.items() if order is None}
        self._dequantized = {
            name: linear for name, linear in linears.items() if _kind(name) in partial | uneven
        }
        self._linears = {name: linear for name, linear in linears.items() if name not in self._dequantized}
        self.group_size = _group_size(self._linears.values(), config)
        """Inputs of a group, in all matrices."""
        self._orders, self._order_of = _shared_orders(
            {name: order for name, order in orders.items() if order is not None and name in self._linears}
        )
        self.notes: tuple[str, ...] = _notes(partial, uneven - partial)
        """What a user should know of how the checkpoint is taken over, a sentence each."""

    @property
    def shapes(self) -> Mapping[str, tuple[int, int]]:
        """Name -> (out, in) of every matrix that stays quantised."""
        return {name: linear.shape for name, linear in self._linears.items()}

    @property
    def dequantized_shapes(self) -> Mapping[str, tuple[int, int]]:
        """Name -> (out, in) of every matrix that is turned back into floats."""
        return {name: linear.shape for name, linear in self._dequantized.items()}

    @property
    def orders(self) -> Mapping[str, str]:
        """Matrix whose inputs were reordered (act-order) -> name of the tensor that says how; some share one.

        Column i of such a matrix multiplies input order[i], so it needs x[:, order].
        """
        return self._orders

    def matrix(self, name: str) -> GroupedInt4:
        """A matrix of `shapes`, read from disk. Raises CheckpointError where its values are damaged."""
        return self._linears[name].matrix(self.group_size)

    def order(self, name: str) -> _Order:
        """An order of `orders`, [in] int32: a permutation of the inputs."""
        return self._order_of[name]

    def dequantize(self, name: str) -> npt.NDArray[np.float32]:
        """A matrix of `shapes` or `dequantized_shapes` in float32, [out, in], in the order of the model."""
        return {**self._linears, **self._dequantized}[name].dequantize()

    def all_dequantized(self, num_layers: int) -> Iterator[tuple[str, npt.NDArray[np.float32]]]:
        """Every matrix of the first layers by its name, as `dequantize` gives it, one at a time."""
        for name in (*self._linears, *self._dequantized):
            if _layer(name) == "*" or int(_layer(name)) < num_layers:
                yield name, self.dequantize(name)

    def check_biases(self, wanted: Iterable[str]) -> None:
        """Quantisers write biases of zeros; a model without biases does without them.

        `wanted` are names of the model's weights, those of whole layers. Raises CheckpointError for another
        bias, which the model lacks.
        """
        names = set(wanted)
        for name, linear in {**self._linears, **self._dequantized}.items():
            if name in names and f"{linear.name}.bias" not in names and linear.has_bias:
                raise CheckpointError(
                    f"{linear.name}.bias is not zero, and by its config.json the model has no bias there; "
                    "correct config.json (attention_bias, mlp_bias)"
                )


def _find(tensors: Mapping[str, StoredTensor], config: QuantizationConfig) -> dict[str, PackedLinear]:
    found: dict[str, dict[str, StoredTensor]] = {}
    for name, tensor in tensors.items():
        module, _, suffix = name.rpartition(".")
        is_packed = suffix in SUFFIXES or (suffix == "bias" and f"{module}.qweight" in tensors)
        if is_packed and f"{module}.weight" not in tensors:
            found.setdefault(module, {})[suffix] = tensor
    return {f"{module}.weight": PackedLinear(module, config, parts) for module, parts in found.items()}


def _kind(name: str) -> str:
    """The name without its layer."""
    return _LAYER.sub("*", name, count=1)


def _layer(name: str) -> str:
    """The layer of a name; what has none is of the layer "*"."""
    match = _LAYER.search(name)
    return match.group() if match else "*"


def _order(linear: PackedLinear) -> _Order | None:
    """The inputs sorted by their groups, [in]; None where the groups are of different sizes."""
    group_of = linear.group_of()
    sizes = np.bincount(group_of, minlength=linear.groups)
    if (sizes != sizes[0]).any():
        return None
    return np.argsort(group_of, kind="stable").astype(np.int32)


def _group_size(linears: Iterable[PackedLinear], config: QuantizationConfig) -> int:
    """The group size of all matrices in the artifact; that of whole rows is the largest that fits all."""
    if config.group_size != WHOLE_ROW:
        return config.group_size
    widths = {linear.shape[1] for linear in linears}
    fitting = [size for size in GROUP_SIZES if all(width % size == 0 for width in widths)]
    if not fitting:
        raise CheckpointError(
            f"the quantised layers have {', '.join(map(str, sorted(widths)))} inputs and one scale "
            f"for all of them; Cleave reads multiples of {GROUP_SIZES[0]}"
        )
    return max(fitting)


def _shared_orders(orders: Mapping[str, _Order]) -> tuple[dict[str, str], dict[str, _Order]]:
    """(matrix -> name of its order, that name -> the order), for the kinds that need one in some layer.

    Kinds that read the same input share an order where theirs are equal in all layers.
    """
    by_kind: dict[str, dict[str, _Order]] = {}
    for name, order in orders.items():
        by_kind.setdefault(_kind(name), {})[_layer(name)] = order
    reordered = {kind for kind, found in by_kind.items() if not all(map(_is_sorted, found.values()))}
    owner: dict[str, str] = {}
    for kind in reordered:
        equal = (
            other
            for other in _of_one_input(kind)
            if other in reordered and _are_equal(by_kind[other], by_kind[kind])
        )
        owner[kind] = next(equal, kind)
    named = {
        name: owner[_kind(name)].replace("*", _layer(name)).removesuffix(".weight") + ".input_order"
        for name in orders
        if _kind(name) in reordered
    }
    return named, {named[name]: orders[name] for name in named}


def _of_one_input(kind: str) -> list[str]:
    """The kinds before this one that read the same activations."""
    for names in _ONE_INPUT:
        for index, name in enumerate(names):
            if kind.endswith(f".{name}.weight"):
                return [kind.replace(f".{name}.", f".{other}.") for other in names[:index]]
    return []


def _is_sorted(order: _Order) -> bool:
    return bool((np.diff(order) == 1).all())


def _are_equal(one: Mapping[str, _Order], other: Mapping[str, _Order]) -> bool:
    """Whether two kinds have the same order in each layer."""
    return one.keys() == other.keys() and all(np.array_equal(one[layer], other[layer]) for layer in one)


def _notes(partial: set[str], uneven: set[str]) -> tuple[str, ...]:
    def said(kinds: set[str], why: str) -> list[str]:
        names = ", ".join(sorted(kind.rpartition("*.")[2].removesuffix(".weight") for kind in kinds))
        return [f"{names} {why}: dequantised in all layers"] if kinds else []

    return (
        *said(partial, "is quantised in some layers only, and all layers share one piece"),
        *said(uneven, "has groups of different sizes (act-order), which the operator lacks"),
    )
