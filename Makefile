PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
ARTIFACT := model_files/demo-artifact
PROMPT ?= San Francisco is a

# A CPU build where one lies ready; plain `torch` would bring gigabytes of CUDA packages.
TORCH ?= torch==2.13.0

.PHONY: run test test-fast setup lint bench clean

run: $(ARTIFACT)/manifest.json  ## export the demo checkpoint and stream a continuation
	@$(BIN)/python scripts/run_llama2.py --model $(ARTIFACT) --input "$(PROMPT)"

test: setup lint  ## lint, types and all tests that this machine can run
	$(BIN)/python -m pytest -n auto -m "not gpu"

test-fast: setup  ## the tests that take less than ten seconds each
	$(BIN)/python -m pytest -n auto -m "not gpu and not slow"

setup: $(STAMP)  ## make .venv with everything a developer needs

lint: setup  ## ruff and strict mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: setup $(ARTIFACT)/manifest.json  ## the split tax and the memory of an export
	$(BIN)/python benchmarks/split_tax.py
	$(BIN)/python benchmarks/export_memory.py

clean:  ## remove the environment and the exported demo
	rm -rf $(VENV) $(ARTIFACT)

$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "Cleave needs Python 3.11 or newer; set PYTHON=python3.11 or newer")'
	@echo "setting up $(VENV); this takes a minute or two the first time"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check "$(TORCH)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[dev]"
	@touch $@

$(ARTIFACT)/manifest.json: $(STAMP) model_files/demo/model.safetensors $(wildcard export/*.py)
	@$(BIN)/python scripts/export_llama2.py --model model_files/demo --output_dir $(ARTIFACT)
	@touch $@
