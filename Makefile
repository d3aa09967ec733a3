# Two commands from a fresh machine: `make run` and `make test`. Each makes the virtual environment it needs.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
BUDGET ?= 10m
RECIPE ?= tiny-addition
# Known to work; a ROCm or CUDA torch that is already there is kept (scripts/setup_venv.py).
TORCH ?= torch==2.13.0

.PHONY: run test test-slow lint format install clean

run: $(VENV)/installed
	$(BIN)/raft-agent run $(RECIPE) --budget $(BUDGET)

test: lint
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "not slow and not real_model"

test-slow: $(VENV)/installed-dev
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "(slow or real_model) and not alone"
	$(BIN)/python -m pytest -m alone

lint: $(VENV)/installed-dev
	$(BIN)/ruff format --check agent tests scripts
	$(BIN)/ruff check agent tests scripts
	$(BIN)/mypy agent

format: $(VENV)/installed-dev
	$(BIN)/ruff check --fix agent tests scripts
	$(BIN)/ruff format agent tests scripts

install: $(VENV)/installed

$(VENV)/torch: scripts/setup_venv.py
	$(PYTHON) scripts/setup_venv.py $(VENV) "$(TORCH)"
	@touch $@

$(VENV)/installed: $(VENV)/torch pyproject.toml
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable .
	@touch $@

$(VENV)/installed-dev: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[dev,math,gym,quantize]"
	@touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
