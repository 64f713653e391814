"""The prefill kernel as Triton compiles it for Hopper: prints shared memory, threads and registers, in JSON.

For a process that is started without Triton's interpreter. Arguments: shared memory of a program at most;
then heads, kv_heads and head_dim, of one layer after the other.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from typing import Any

import torch
import triton
from triton_compiler import pretend_hopper

from cleave.kvcache.backend import CacheShape
from cleave.kvcache.spec import AttentionSpec, RopeSpec


def registers(code: Any) -> int:
    """Of a thread, as ptxas has given them out."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(code.asm["cubin"])
        file.flush()
        command = [triton.knobs.nvidia.cuobjdump.path, "--dump-resource-usage", file.name]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    (count,) = re.findall(r"\bREG:(\d+)", said)
    return int(count)


def compiled(shared_memory: int, heads: int, kv_heads: int, head_dim: int) -> dict[str, int]:
    """For one layer."""
    from cleave.kvcache.backends.triton_layer import full_tables, make_layer
    from cleave.kvcache.backends.triton_prefill import prefill_kernel
    from cleave.kvcache.backends.triton_tuning import tune

    spec = AttentionSpec(heads, kv_heads, head_dim, head_dim**-0.5, RopeSpec("default", 1e4, head_dim))
    tuning = tune(spec, 2, 132, shared_memory)
    tables = full_tables(spec.rope, 16, torch.device("cpu"))
    shape = CacheShape((spec,), 1, 16, 16, 16)
    layer = make_layer(shape, spec, 0, tuning, torch.float16, *tables, deterministic=False)
    half, angle, number = torch.float16, torch.float32, torch.int32
    given = (half, half, 12288, half, half, angle, angle, number, number)
    code = prefill_kernel.warmup(*given, grid=(1,), **layer.prefill._meta | {"WIDEN": False})
    metadata = code.metadata
    return {"shared": metadata.shared, "threads": 32 * metadata.num_warps, "registers": registers(code)}


def main() -> None:
    """Compile it for each."""
    pretend_hopper()
    shared_memory, *numbers = map(int, sys.argv[1:])
    layers = zip(*(numbers[part::3] for part in range(3)), strict=True)
    print(json.dumps([compiled(shared_memory, *layer) for layer in layers]))


if __name__ == "__main__":
    main()
