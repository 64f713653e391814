"""The plugin driven by hand, over host memory: through TensorRT for RTX's own bindings, and the stand-in."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
import tensorrt_stand_in
import torch
from plugin_driver import Driver, HostMemory

from cleave.errors import AttentionError, EngineError
from cleave.kvcache.server import AttentionServer
from cleave.kvcache.spec import AttentionSpec, RopeSpec
from cleave.kvcache.step import Chunk
from cleave.plugins.tensorrt.host import Host, bound
from cleave.plugins.torch_operator import bound as torch_bound

SPEC = AttentionSpec(4, 2, 16, 0.25, RopeSpec("default", 1e4, 16))
DTYPES = {"float32": "FLOAT", "float16": "HALF", "bfloat16": "BF16"}


@pytest.fixture(params=["tensorrt_rtx_bindings", "stand-in"])
def driver(request: pytest.FixtureRequest) -> Driver:
    if request.param == "stand-in":
        return Driver(tensorrt_stand_in, HostMemory())
    pytest.importorskip("tensorrt_rtx_libs", reason="TensorRT for RTX has no wheel for this machine")
    return Driver(pytest.importorskip("tensorrt_rtx_bindings"), HostMemory())


def server(dtype: str = "float32", layers: int = 2) -> AttentionServer:
    made = AttentionServer(
        [SPEC] * layers, backend="reference", num_pages=16, max_position=128, max_tokens=64, dtype=dtype
    )
    made.open(0)
    return made


def rows(count: int, dtype: str, seed: int = 0) -> list[torch.Tensor]:
    """q, k, v and an out that nobody has written yet."""
    generator = torch.Generator().manual_seed(seed)
    kind = getattr(torch, dtype)
    widths = (SPEC.q_size, SPEC.kv_size, SPEC.kv_size)
    made = [torch.randn(count, width, generator=generator).to(kind) for width in widths]
    return [*made, torch.full((count, SPEC.q_size), torch.nan, dtype=kind)]


# What TensorRT asks while it builds.


@pytest.mark.parametrize("kind", ["FLOAT", "HALF", "BF16", "INT8", "INT32", "INT64"])
@pytest.mark.parametrize("order", ["LINEAR", "CHW2", "HWC8"])
@pytest.mark.parametrize("other", ["FLOAT", "HALF"])
def test_row_major_tensors_of_one_float_type_are_taken_and_no_others(
    driver: Driver, kind: str, order: str, other: str
) -> None:
    plugin = driver.parsed(0, SPEC)
    first = driver.dynamic((-1, 64), kind, order)
    is_allowed = kind in DTYPES.values() and order == "LINEAR"
    assert plugin.supports_format_combination(0, [first], 3) is is_allowed
    for position in (1, 2, 3):
        later = [first, *[driver.dynamic((-1, 32), other)] * position]
        assert plugin.supports_format_combination(position, later, 3) is (other == kind)


def test_out_has_type_and_shape_of_q(driver: Driver) -> None:
    plugin = driver.parsed(0, SPEC)
    for kind in DTYPES.values():
        assert plugin.get_output_data_types([getattr(driver.trt.DataType, kind)] * 3) == [
            getattr(driver.trt.DataType, kind)
        ]
    q, kv = driver.trt.DimsExprs(2), driver.trt.DimsExprs(2)
    (out,) = plugin.get_output_shapes([q, kv, kv], [], None)
    assert isinstance(out, driver.trt.DimsExprs)
    assert len(out) == 2
    assert list(out) == list(q)
    assert plugin.num_outputs == 1
    assert plugin.get_workspace_size([], []) == 0
    for capability in ("CORE", "BUILD", "RUNTIME"):
        assert plugin.get_capability_interface(getattr(driver.trt.PluginCapabilityType, capability)) is plugin


def test_its_name_is_that_of_the_operator(driver: Driver) -> None:
    plugin = driver.parsed(0, SPEC)
    named = (plugin.plugin_name, plugin.plugin_version, plugin.plugin_namespace)
    assert named == ("CleaveAttention", "1", "cleave")
    creator = driver.creator
    assert (creator.name, creator.plugin_version, creator.plugin_namespace) == named


@pytest.mark.parametrize("dtype", DTYPES)
def test_while_an_engine_is_built_it_writes_zeros_and_calls_nobody(driver: Driver, dtype: str) -> None:
    host, own = Host(), server(dtype)
    with bound(host), host.serving(own):
        plugin = driver.parsed(0, SPEC)
        for timed in (plugin, plugin.clone(), plugin.attach_to_context(None)):
            tensors = rows(3, dtype)
            driver.enqueue(timed, *tensors, stream=11)
            assert torch.equal(tensors[3], torch.zeros_like(tensors[3]))
    assert own.runs == 0
    assert driver.memory.streams == [11] * 3


# What an engine holds.


def test_an_engine_holds_the_fields_and_no_handle(driver: Driver) -> None:
    spec = AttentionSpec(32, 8, 128, 0.1)
    plugin = driver.parsed(17, spec)
    again = driver.deserialised(plugin)
    for made in (plugin, again, plugin.clone(), again.clone(), again.attach_to_context(None)):
        held = {field.name: (int(field.data[0]), field.size) for field in made.get_fields_to_serialize()}
        values = {"layer": 17, "heads": 32, "kv_heads": 8, "head_dim": 128, "version": 1}
        assert held == {name: (value, 1) for name, value in values.items()}
        assert {field.type for field in made.get_fields_to_serialize()} == {driver.trt.PluginFieldType.INT32}


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"heads": None}, "no heads; .*with_fields"),
        ({"layer": None, "head_dim": None}, "no layer, head_dim"),
        ({"layer": [1, 2]}, "field layer .* not one number"),
        ({"kv_heads": 0}, "0 kv_heads"),
        ({"kv_heads": 3}, "heads a multiple of kv_heads"),
        ({"layer": -1}, "layer -1"),
        ({"version": 2}, "plugins of version 2, and this Cleave has version 1; build the engine again"),
    ],
)
def test_fields_that_cannot_be_are_refused_and_the_host_knows_why(
    driver: Driver, changed: dict[str, Any], words: str
) -> None:
    values = {"layer": 0, "heads": 4, "kv_heads": 2, "head_dim": 16, "version": 1} | changed
    given = driver.fields(**{name: value for name, value in values.items() if value is not None})
    host = Host()
    create = driver.creator.create_plugin
    with pytest.raises(EngineError, match=words), host.serving(None), bound(host):
        through_tensorrt(lambda: create("", given, driver.trt.TensorRTPhase.RUNTIME))


@pytest.mark.parametrize(("name", "width"), [("q", 65), ("k", 64), ("v", 16), ("out", 32)])
def test_tensors_of_other_widths_are_refused_when_they_are_seen(
    driver: Driver, name: str, width: int
) -> None:
    widths = {"q": 64, "k": 32, "v": 32, "out": 64} | {name: width}
    plugin = driver.parsed(5, SPEC)
    dynamic = [driver.dynamic((-1, size), "HALF") for size in widths.values()]
    with pytest.raises(EngineError, match=rf"{name} of layer 5 is \[-1, {width}\].*must be \[tokens, "):
        plugin.configure_plugin(dynamic[:3], dynamic[3:])
    plain = [described.desc for described in dynamic]
    with pytest.raises(EngineError, match=f"{name} of layer 5"):
        plugin.on_shape_change(plain[:3], plain[3:])


# What it does in an engine.


@pytest.mark.parametrize("dtype", DTYPES)
def test_it_hands_its_tensors_to_the_attention_server_as_they_are(driver: Driver, dtype: str) -> None:
    """Prefill, decode, and a chunk behind it; the truth is the torch operator over another server."""
    own, other = server(dtype), server(dtype)
    host = Host()
    with bound(host):
        plugins = [driver.in_context(layer, SPEC) for layer in range(2)]
    for start, count in ((0, 7), (7, 1), (8, 5)):
        for each in (own, other):
            each.plan([Chunk(0, start, count)])
        for layer, plugin in enumerate(plugins):
            tensors = rows(count, dtype, seed=start + layer)
            with host.serving(own):
                driver.enqueue(plugin, *tensors, stream=29)
            with torch_bound(other):
                expected = torch.ops.cleave.CleaveAttention(*tensors[:3], layer)
            assert torch.equal(tensors[3], expected)
        own.commit()
        other.commit()
    assert own.runs == 6
    assert set(driver.memory.streams) == {29}


def test_tensors_over_the_same_addresses_are_made_once(
    driver: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []
    wrap = HostMemory.tensor
    monkeypatch.setattr(HostMemory, "tensor", lambda self, *given: made.append(given) or wrap(self, *given))
    host, own = Host(), server()
    with bound(host):
        plugin = driver.in_context(0, SPEC)
    tensors = rows(4, "float32")
    others = rows(4, "float32")
    for given, expected in ((tensors, 4), (tensors, 4), (others, 8), (others, 8)):
        own.plan([Chunk(0, 0, 4)])
        with host.serving(own):
            driver.enqueue(plugin, *given, stream=0)
        own.rollback()
        assert len(made) == expected


def test_two_engines_in_two_threads_each_have_their_own_server(driver: Driver) -> None:
    """All is made and run at the same time; what one writes, the other never sees."""
    ready = threading.Barrier(2)
    results: dict[int, torch.Tensor] = {}

    def use(number: int) -> None:
        own, host = server(), Host()
        with bound(host):
            ready.wait(10)
            plugin = driver.in_context(number, SPEC)
            ready.wait(10)
        tensors = rows(6, "float32", seed=number)
        own.plan([Chunk(0, 0, 6)])
        with host.serving(own):
            ready.wait(10)
            driver.enqueue(plugin, *tensors, stream=number)
        results[number] = tensors[3]
        assert own.runs == 1

    threads = [threading.Thread(target=use, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    for number in range(2):
        alone = server()
        alone.plan([Chunk(0, 0, 6)])
        with torch_bound(alone):
            expected = torch.ops.cleave.CleaveAttention(*rows(6, "float32", seed=number)[:3], number)
        assert torch.equal(results[number], expected)


def test_a_context_belongs_to_the_host_that_is_bound_when_it_is_made(driver: Driver) -> None:
    """One engine, two contexts, two servers."""
    first, second = Host(), Host()
    with bound(first):
        plugin = driver.deserialised(driver.parsed(0, SPEC))
        contexts = {first: plugin.attach_to_context(None)}
    with bound(second):
        contexts[second] = plugin.attach_to_context(None)
    clone = contexts[second].clone()
    for host, used in ((first, contexts[first]), (second, contexts[second]), (second, clone)):
        own = server()
        own.plan([Chunk(0, 0, 2)])
        with host.serving(own):
            driver.enqueue(used, *rows(2, "float32"), stream=0)
        assert own.runs == 1


# What goes wrong.


def through_tensorrt(action: Callable[[], Any]) -> None:
    """TensorRT's way with an exception of a plugin: a message on stderr, and `False` for the caller."""
    try:
        action()
    except BaseException:
        raise RuntimeError("the context cannot run") from None


@pytest.mark.parametrize("error", [AttentionError("no pages"), ValueError("a bug"), KeyboardInterrupt()])
def test_what_the_server_raises_is_raised_where_the_engine_is_run(
    driver: Driver, error: BaseException
) -> None:
    class Failing:
        def run(self, layer: int, *tensors: Any) -> None:
            raise error

    host = Host()
    with bound(host):
        plugin = driver.in_context(0, SPEC)
    with pytest.raises(type(error)) as raised, host.serving(Failing()):
        through_tensorrt(lambda: driver.enqueue(plugin, *rows(2, "float32"), stream=0))
    assert raised.value is error
    own = server()
    own.plan([Chunk(0, 0, 2)])
    with host.serving(own):  # the next run is none the worse for it
        driver.enqueue(plugin, *rows(2, "float32"), stream=0)
    assert own.runs == 1


def test_an_error_that_no_plugin_told_of_is_left_alone() -> None:
    with pytest.raises(RuntimeError, match="its own"), Host().serving(None):
        raise RuntimeError("its own")


def test_a_plugin_with_no_attention_server_says_what_to_do(driver: Driver) -> None:
    unbound = driver.in_context(0, SPEC)
    with pytest.raises(AttentionError, match="inside `with bound"):
        driver.enqueue(unbound, *rows(1, "float32"), stream=0)
    host = Host()
    with bound(host):
        plugin = driver.in_context(0, SPEC)
    with pytest.raises(AttentionError, match=r"inside `with host\.serving"):
        driver.enqueue(plugin, *rows(1, "float32"), stream=0)


def test_a_host_is_bound_for_its_own_thread_only(driver: Driver) -> None:
    made: list[Any] = []
    with bound(Host()):
        thread = threading.Thread(target=lambda: made.append(driver.in_context(0, SPEC)))
        thread.start()
        thread.join(10)
    assert made[0].operator.host is None
