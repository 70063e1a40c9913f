# Two commands for a newcomer: `make quickstart` and `make test`.
# All install into .venv first; `make VENV=DIR ...` uses the environment in DIR as it is.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
JOBS ?= 2

ifneq ($(origin VENV),command line)
VENV := .venv
READY := $(VENV)/.ready
endif

BIN := $(VENV)/bin
PYTEST := $(BIN)/python -m pytest

.PHONY: venv quickstart test test-long lint format clean

venv: $(READY)

.venv/.ready: pyproject.toml constraints.txt
	@echo "installing fllmc and what its tests need into .venv"
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "fllmc needs Python 3.11 or later; say which: make PYTHON=python3.12")'
	$(PYTHON) -m venv .venv
	.venv/bin/python -m pip install --progress-bar off --constraint constraints.txt --editable '.[all]'
	@touch $@

quickstart: $(READY)
	$(BIN)/fllmc quickstart

test: lint
	$(PYTEST) -n $(JOBS)

test-long: $(READY)
	$(PYTEST) -m long --hypothesis-profile long

lint: $(READY)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/lint-imports
	$(BIN)/pyright --pythonpath $(BIN)/python

format: $(READY)
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

clean:
	rm -rf .venv build dist src/fllmc.egg-info runs
	rm -rf .hypothesis .import_linter_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
