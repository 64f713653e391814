"""The prefill kernel as Triton compiles it for Hopper: prints its shared memory and threads, in JSON.

For a process that is started without Triton's interpreter. Arguments: shared memory of a program at most,
heads, kv_heads, head_dim.
"""

from __future__ import annotations

import json
import sys

import torch
from triton_compiler import pretend_hopper

from cleave.kvcache.backend import CacheShape
from cleave.kvcache.spec import AttentionSpec, RopeSpec


def main() -> None:
    """Compile it for one layer."""
    pretend_hopper()
    from cleave.kvcache.backends.triton_layer import full_tables, make_layer
    from cleave.kvcache.backends.triton_prefill import prefill_kernel
    from cleave.kvcache.backends.triton_tuning import tune

    shared_memory, heads, kv_heads, head_dim = map(int, sys.argv[1:])
    spec = AttentionSpec(heads, kv_heads, head_dim, head_dim**-0.5, RopeSpec("default", 1e4, head_dim))
    tuning = tune(spec, 2, 132, shared_memory)
    tables = full_tables(spec.rope, 16, torch.device("cpu"))
    shape = CacheShape((spec,), 1, 16, 16, 16)
    layer = make_layer(shape, spec, 0, tuning, torch.float16, *tables, deterministic=False, queries=False)
    half, angle, number = torch.float16, torch.float32, torch.int32
    given = (half, half, 12288, half, half, angle, angle, number, number)
    code = prefill_kernel.warmup(*given, grid=(1,), **layer.prefill._meta | {"WIDEN": False})
    told = {"shared": code.metadata.shared, "threads": 32 * code.metadata.num_warps}
    print(json.dumps(told | {"registers": tuning.prefill.registers}))


if __name__ == "__main__":
    main()
