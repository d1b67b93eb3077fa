# Every target is self-sufficient: it makes the environment first if it is not there.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
VLLM_VENV := .venv-vllm
export HF_HUB_OFFLINE ?= 1
export TOKENIZERS_PARALLELISM ?= false

.PHONY: setup quickstart test test-slow test-browser test-vllm lint format docs models evidence evidence-text clean

setup: $(VENV)/.ready

$(VENV)/.ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "Python 3.10 or newer is needed; set PYTHON=..."; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV) (a few minutes the first time)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt torch
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@

quickstart: setup
	@$(BIN)/gkd-rl train configs/arithmetic.yaml

# Tests start many processes: their threads sleep when they wait.
test test-slow test-browser test-vllm: export OMP_WAIT_POLICY ?= PASSIVE

test: setup
	$(BIN)/python -m pytest

test-slow: setup
	$(BIN)/python -m pytest -m slow --timeout 3600

# Needs Chromium (apt-get install chromium); CHROMIUM=... names another one.
test-browser: setup
	$(BIN)/python -m pytest tests/report -m browser

# vLLM pins what it depends on, so that it has an environment of its own.
test-vllm: $(VLLM_VENV)/.ready
	PYTHONPATH=$(CURDIR) $(VLLM_VENV)/bin/python -m pytest tests/with_vllm -m vllm --timeout 1200

$(VLLM_VENV)/.ready: constraints-vllm.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' || { echo "vLLM's pinned set needs Python 3.11; set PYTHON=..."; exit 1; }
	@test -x $(VLLM_VENV)/bin/python || $(PYTHON) -m venv $(VLLM_VENV)
	@echo "installing vLLM into $(VLLM_VENV) (a few minutes the first time)"
	@$(VLLM_VENV)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --requirement constraints-vllm.txt
	@touch $@

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

# The site goes to build/site.
docs: $(VENV)/.docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

$(VENV)/.docs: $(VENV)/.ready
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[docs]'
	@touch $@

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

models: setup
	$(BIN)/python scripts/build_embedded_models.py

# Every method with three seeds at equal arithmetic: hours on two cores. What is there is not repeated.
evidence: setup
	@test -n "$$GKD_RL_DATA" || echo "GKD_RL_DATA is not set: the texts that it has, for evidence-text, are left out"
	$(BIN)/python scripts/evidence.py
	@test -z "$$GKD_RL_DATA" || $(MAKE) --no-print-directory evidence-text

evidence-text: setup
	$(BIN)/python scripts/evidence_text.py

clean:
	rm -rf $(VENV) $(VLLM_VENV) build *.egg-info .pytest_cache .ruff_cache .hypothesis
