PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
ARTIFACT := model_files/demo-artifact
PROMPT ?= San Francisco is a

# A CPU build where one lies ready; plain `torch` would bring gigabytes of CUDA packages.
TORCH ?= torch==2.13.0

# It needs an old huggingface_hub, so it lives in a folder of its own; tests/server runs it from there.
TGI_CLIENT := text-generation==0.7.0

.PHONY: run test test-fast sim soak gpu sanitize setup lint bench bench-cpu report clean

run: $(ARTIFACT)/manifest.json  ## export the demo checkpoint and stream a continuation
	@$(BIN)/python scripts/run_llama2.py --model $(ARTIFACT) --input "$(PROMPT)"

test: setup lint  ## lint, types and all tests that this machine can run
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto -m "not gpu and not soak"

test-fast: setup  ## the tests that take less than ten seconds each
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto -m "not gpu and not slow and not soak"

SEEDS ?= 1000

sim: setup  ## simulate the scheduler with SEEDS other seeds, or replay SEED
	@PYTHONPATH=tests/support $(BIN)/python -m simulation $(if $(SEED),--seed $(SEED),--seeds $(SEEDS))

SOAK_SECONDS ?= 600

soak: setup  ## serve a crowd for SOAK_SECONDS and look at the memory
	OMP_NUM_THREADS=1 SOAK_SECONDS=$(SOAK_SECONDS) $(BIN)/python -m pytest -s -m soak tests/server

GPU_WORKERS ?= 3

gpu: setup  ## every test that needs an NVIDIA GPU, GPU_WORKERS files at a time; of less than 80 GB: GPU_WORKERS=1
	$(BIN)/python scripts/gpu_tests.py --workers $(GPU_WORKERS)

sanitize: setup  ## every Triton kernel under compute-sanitizer, on an NVIDIA GPU
	$(BIN)/python scripts/sanitize.py

setup: $(STAMP)  ## make .venv with everything a developer needs

lint: setup  ## ruff and strict mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: setup $(ARTIFACT)/manifest.json  ## the split tax, the scheduler, the memory of an export, and what HTTP costs
	$(BIN)/python benchmarks/split_tax.py
	$(BIN)/python benchmarks/scheduler.py
	$(BIN)/python benchmarks/export_memory.py
	$(BIN)/python benchmarks/serve_overhead.py

bench-cpu: setup  ## Cleave beside transformers, llama.cpp and onnxruntime-genai; goes on where it was interrupted
	$(BIN)/python benchmarks/bench_cpu.py $(PAIRS)
	$(BIN)/python benchmarks/report.py

report: setup  ## docs/benchmarks.md, and a table of README.md, from the results
	$(BIN)/python benchmarks/report.py

clean:  ## remove the environment and the exported demo
	rm -rf $(VENV) $(ARTIFACT)

$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "Cleave needs Python 3.11 or newer; set PYTHON=python3.11 or newer")'
	@echo "setting up $(VENV); this takes a minute or two the first time"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check "$(TORCH)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[dev]"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-warn-conflicts --upgrade --target $(VENV)/tgi-client $(TGI_CLIENT)
	@touch $@

$(ARTIFACT)/manifest.json: $(STAMP) model_files/demo/model.safetensors $(wildcard export/*.py)
	@$(BIN)/python scripts/export_llama2.py --model model_files/demo --output_dir $(ARTIFACT)
	@touch $@
