"""Cleave inside TorchPipe: many client threads through its batching, and the batchless part as its node.

What happens inside TorchPipe can end a process, so each pipeline runs in one of its own.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from command import REPOSITORY

pytest.importorskip("omniback", reason="needs the extra torchpipe")


def run(program: str, *arguments: object) -> Any:
    """What a program prints at its end, as JSON."""
    ended = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program), *map(str, arguments)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(REPOSITORY), *sys.path])},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert ended.returncode == 0, ended.stderr
    return json.loads(ended.stdout.splitlines()[-1])


MANY_CLIENTS = """
    import json, sys, threading
    import omniback
    from cleave import LLM, SamplingParams
    from cleave.runtime.torchpipe import register_generate

    with LLM(sys.argv[1], kv_cache_bytes=1 << 24) as llm:
        sizes, generate = [], llm.generate
        llm.generate = lambda prompts, *rest, **more: (
            sizes.append(len(prompts)), generate(prompts, *rest, **more))[1]
        register_generate(llm)
        node = {"backend": "CleaveGenerate", "batching_timeout": 20, "instance_num": 2}
        pipe = omniback.pipe({"answers": node})
        prompts = [[(7 * i + j) % 250 for j in range(3 + i % 5)] for i in range(40)]
        requests = [{"data": p, "params": {"max_tokens": 4 + i % 7}} for i, p in enumerate(prompts)]
        requests[5] = {"data": [], "params": {}}
        requests[6]["params"] = {"max_tokens": -1}
        requests[7]["params"] = {"no_such_thing": 1}
        requests[8]["params"] = {"n": 2}
        requests[9]["data"] = 1.5
        requests[10]["data"] = "San Fran"
        requests[11]["params"] = [1]
        requests[12] = {"data": prompts[12]}
        requests[13] = {"params": {}}
        threads = [threading.Thread(target=pipe, args=(request,)) for request in requests]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        found = [
            (list(r["token_ids"]), str(r["result"]), str(r["finish_reason"]), str(r.get("error", "")))
            for r in requests
        ]
        alone = {}
        for i, prompt in enumerate(prompts):
            if i not in (5, 6, 7, 8, 9, 11, 13):
                given = "San Fran" if i == 10 else prompt
                most = None if i == 12 else 4 + i % 7
                (answer,) = generate(given, SamplingParams(max_tokens=most))
                alone[i] = (list(answer.token_ids), answer.text, answer.finish_reason, "")
        print()
        print(json.dumps({"found": found, "alone": alone, "sizes": sizes}))
"""


def test_many_clients_are_batched_and_each_gets_the_answer_it_would_get_alone(
    artifact: Callable[[str], Path],
) -> None:
    told = run(MANY_CLIENTS, artifact("gqa"))
    for index, expected in told["alone"].items():
        assert told["found"][int(index)] == expected
    assert max(told["sizes"]) > 1
    assert sum(told["sizes"]) == 33
    for index, words in {
        5: "empty",
        6: "max_tokens",
        7: "no_such_thing",
        8: "n is 2; a TorchPipe request has one answer",
        9: "neither text nor a list of token ids",
        11: "params is not a dict",
        13: "neither text nor a list of token ids",
    }.items():
        tokens, text, ended, error = told["found"][index]
        assert (tokens, text, ended) == ([], "", "error")
        assert words in error


BATCHLESS_NODE = """
    import json, sys
    import numpy as np
    import omniback
    from cleave.export.artifact import Artifact
    from cleave.kvcache.server import AttentionServer
    from cleave.kvcache.step import Chunk
    from cleave.plugins.torchpipe import NodeAttention, register_attention
    from cleave.runtime.engines.engine import EngineOptions, create_engine

    artifact = Artifact.open(sys.argv[1])
    specs = artifact.manifest.layer_specs
    servers = [
        AttentionServer(specs, backend="cpu", num_pages=16, max_position=128, max_tokens=64, threads=1)
        for _ in range(2)
    ]
    engine = create_engine("onnxruntime", artifact, EngineOptions(max_tokens=64, threads=1))
    register_attention(servers[1], "ServerOne")
    pipe = omniback.pipe({"attention": {"backend": "ServerOne", "batching_timeout": 0}})
    steps = [[(0, 0, 9), (1, 0, 1)], [(1, 1, 6), (0, 9, 1)], [(0, 10, 1), (1, 7, 1)]]
    same = []
    for number, step in enumerate(steps):
        tokens = sum(count for _, _, count in step)
        ids = np.arange(tokens, dtype=np.int64) + 5 * number
        logits = []
        for server, attention in zip(servers, (servers[0], NodeAttention(pipe))):
            for sequence, start, _ in step:
                if start == 0:
                    server.open(sequence)
            server.plan([Chunk(*chunk) for chunk in step])
            logits.append(engine.run(ids, np.arange(tokens), attention).copy())
            server.commit()
        same.append(bool(np.array_equal(*logits)))
    told = ""
    try:
        NodeAttention(pipe).run(0, *[np.zeros((1, 64), np.float32)] * 4)
    except Exception as error:
        told = str(error)
    print()
    print(json.dumps({"same": same, "runs": servers[1].runs, "layers": len(specs), "told": told}))
"""


def test_an_engine_whose_attention_is_a_node_gives_the_same_bits(artifact: Callable[[str], Path]) -> None:
    told = run(BATCHLESS_NODE, artifact("gqa"))
    assert told["same"] == [True] * 3
    assert told["runs"] == 3 * told["layers"]
    assert "no step is planned" in told["told"]
