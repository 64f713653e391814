"""The sections of docs/benchmarks.md, in their order."""

from __future__ import annotations

SECTIONS = {
    "latency": ("Latency", "Prefill and decode of a batch in lockstep, without a scheduler."),
    "throughput": (
        "Throughput",
        "All requests at once through the whole LLM, end-of-sequence tokens ignored.",
    ),
    "side_by_side": (
        "Side by side",
        "A peer and Cleave on one checkpoint in one run, interleaved, each with several kinds of weights; "
        "the last columns: Cleave's tokens/s over the peer's, of medians.",
    ),
    "vs_vllm": (
        "The whole LLM on one GPU",
        "Random weights, through `LLM.generate`, scheduler and text included: prompts of 512 and 64 more "
        "tokens by batch, then mixed requests. Ratio: above 1, Cleave is faster than vLLM. Nothing "
        "compiled: in these two runs Cleave's own engine cache was empty, and Triton's was not; see "
        "[gpu.md](gpu.md#figures).",
    ),
    "serve": ("Serving", "TTFT, TPOT, ITL and E2E by the definitions of `vllm bench serve`."),
    "serve_overhead": (
        "What HTTP costs",
        "Processor time of the server's process for each token, beside that of generating without one.",
    ),
    "kvrun": (
        "kv.run's table",
        "Tokens/s, and in brackets the % of what the machine or card can do at most. A prefill counts one "
        "token for each sequence. The published columns are of Llama-2-7B.",
    ),
    "split_tax": (
        "Split tax",
        "What it costs to run the model in pieces, beside the uncut graph and the whole step.",
    ),
    "sampler": (
        "Sampler",
        "Choosing the next tokens of a batch. A pass is one reading of its logits at the machine's "
        "bandwidth; `flat`: 90 % of the probability are tens of thousands of tokens.",
    ),
    "export_memory": ("Memory of an export", "Peak memory of the process beside the size of the checkpoint."),
    "structured": (
        "Structured output",
        "The masks of two libraries; what each makes of the features of JSON Schema (ignored: it lets "
        "through what the schema forbids); and what masks cost the engine's thread, microseconds a request.",
    ),
    "start_up": (
        "Start-up",
        "Until an engine can run; files are in the page cache but where a row says otherwise. `in turn`: "
        "sessions made one after the other; `side by side`: several at a time, as the engine does; `saved`: "
        "so, of pieces that `cleave build` had optimised and packed, and that ONNX Runtime packs again all "
        "the same; `no packing`: those without packing, which gives other bits.",
    ),
    "quantization": (
        "Quantisation",
        "The demo checkpoint's weights in float32 and quantised: bytes of weights.safetensors, KL divergence "
        "from float32 and perplexity by that of float32 on held-out text, known answers, and tokens/s in "
        "lockstep.",
    ),
    "scheduler": ("Scheduler", "The cost of a scheduling decision."),
    "tensorrt_rtx_build": (
        "Building for TensorRT for RTX",
        "One middle plan for all layers beside one for each layer, and weights as inputs of the plans beside "
        "weights inside. Built without a GPU; nothing was run, so what sharing costs in fusion is not known.",
    ),
    "attention_cpu": (
        "Attention on the CPU",
        "One layer of the backend `cpu`, a matrix product in ONNX Runtime's pool before each run, by whose "
        "threads compute it: one, Python's, Cleave's own on semaphores, and those of the pool.",
    ),
    "cpu_step": ("A decode step on the CPU", "What the parts of a step take, medians."),
    "quantized_operators": (
        "Forms of quantised products",
        "Linear layers in ONNX Runtime, and how many different results one row had in batches of 1 to 129.",
    ),
    "observing": (
        "What watching costs",
        "Microseconds of the engine thread for a step with nobody watching, with metrics, and with an open "
        "page; and of a frame of the page.",
    ),
    "start_up_gpu": (
        "Start-up on one GPU",
        "From the start of a process to its first answer, engine `inductor`, random weights in the page "
        "cache. `cold`: nothing was compiled before; `warm`: engine cache and home folder are filled; "
        "`new home`: the engine cache alone is. Seconds, and how often; some parts lie within others.",
    ),
    "gpu_engine": (
        "The engine on one GPU",
        "The engine `inductor` over attention `triton`, random weights, requests in lockstep, greedy on the "
        "GPU, without the scheduler. `alone`: attention replaced by a copy. What the limits are, and what "
        "the figures mean, is in [gpu.md](gpu.md#figures).",
    ),
    "gpu_kernels": (
        "Kernels of a decode step on one GPU",
        "All of one step. A kernel that starts early is counted from its start, its waiting included.",
    ),
    "gpu_mixed": (
        "Large steps on one GPU",
        "Prompts alone, and requests that come and go, through the whole LLM: kinds of steps, how long the "
        "GPU rested before them, and kernels by share.",
    ),
    "launch_gpu": (
        "What the host needs for a step on one GPU",
        "Prefill and mixed steps of many layers too narrow to keep the GPU busy, medians: until everything "
        "is launched, and until it has run. `replayed`: each piece is a CUDA graph.",
    ),
    "attention_h200": (
        "Attention on one GPU",
        "One layer of the backend `triton`, launch included; limit: keys and values at the speed of a copy.",
    ),
    "attention_backends": (
        "Attention on one GPU: Triton and FlashInfer",
        "Microseconds of one layer, append included, in turn in one process, and of the host: `plan` once a "
        "step, `launch` once a layer. `fa3`, `fa2`: FlashInfer's kernels for chunks; torch: PyTorch's own "
        "attention on tensors that lie ready, where all prompts are of one length.",
    ),
    "attention_search": (
        "Block sizes of attention on one GPU",
        "Microseconds of one layer, by keys, warps, stages and programs a multiprocessor.",
    ),
    "sampler_gpu": (
        "Sampler on one GPU",
        "Microseconds of the GPU for all rows; a pass is one reading of the logits at the speed of a copy in "
        "the same run; call: what the host spends; torch: the usual way there.",
    ),
}
"""What `benchmark` in the figures says, or a result's name begins with -> title and introduction."""
