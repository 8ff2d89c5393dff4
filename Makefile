# Two commands do everything from nothing: `make quickstart` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: help install quickstart test test-fast check docs wheel bench clean

help:  ## Show this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 14

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt torch
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

install: $(STAMP)  ## Make .venv with everything in it

quickstart: $(STAMP)  ## The main job: build the zoo, search, confirm, report, export, load
	$(BIN)/evomerge zoo build
	if [ -e runs/quickstart/experiment.yaml ]; then $(BIN)/evomerge resume runs/quickstart; \
	else $(BIN)/evomerge run quickstart --out runs/quickstart; fi
	$(BIN)/evomerge export runs/quickstart
	$(BIN)/python docs/ask.py runs/quickstart/model

test: $(STAMP)  ## All tests, the slow ones included
	$(BIN)/evomerge zoo build
	$(BIN)/python -m pytest

test-fast: $(STAMP)  ## The tests that take less than about 20 seconds each
	$(BIN)/evomerge zoo build
	$(BIN)/python -m pytest -m 'not slow'

check: $(STAMP)  ## Lint, types, import direction
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: $(STAMP)  ## Write docs/methods.md anew from the registrations
	$(BIN)/evomerge methods --markdown > docs/methods.md

wheel: $(STAMP)  ## Build the wheel and check what is in it
	rm -rf dist
	$(BIN)/python -m build --wheel --outdir dist .
	$(BIN)/check-wheel-contents dist/*.whl

bench: $(STAMP)  ## Overhead of a trial; speed of merging
	$(BIN)/python benchmarks/overhead.py
	$(BIN)/python benchmarks/merge_speed.py

clean:  ## Remove what the commands above made, the zoo's cache excepted
	rm -rf $(VENV) runs dist build
