# Two commands do everything on a machine with Python 3.11 to 3.13, make and a C compiler:
#   make demo        make test
# Settings: PYTHON (which Python), VENV (which environment; an existing one is filled, not replaced),
# WORKERS (processes that run tests, each whole files; a real model takes two GB of one),
# TORCH_INDEX (where to find a CPU build of torch if pip's own indexes have none).

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
SHELL := /bin/bash

PYTHON ?= python3
VENV ?= .venv
WORKERS ?= 2
BIN := $(VENV)/bin
STAMP := $(VENV)/.expertmix-installed
FLOORS := retrieval tools agents graph apps
UV := build/uv/bin/uv

export TORCH_INDEX
# One OpenMP thread: libgomp's busy waiting makes two of them ten times slower than one. No phoning home.
export OMP_NUM_THREADS ?= 1
export VLLM_NO_USAGE_STATS := 1
# The site generator prints an advertisement for its successor otherwise.
export NO_MKDOCS_2_WARNING := 1

.PHONY: help install demo test test-gpu check format types bench docs lock dist clean

help:  ## List the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

install: $(STAMP)  ## Create the environment (.venv) from the lock; the others do it by themselves
$(STAMP): pyproject.toml locks/cpu.txt locks/install.sh
	@bash locks/install.sh "$(PYTHON)" "$(VENV)"
	@touch $@

demo: $(STAMP)  ## Recruit, reason and vote over the example questions, on real models
	@$(BIN)/expertmix demo

test: $(STAMP)  ## Run the tests that need no GPU
	@HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile -m "not gpu"

test-gpu: $(STAMP)  ## Run the tests that need a CUDA device
	@HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -m gpu

check: types  ## Check format, lint and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright --pythonpath $(BIN)/python

format: $(STAMP)  ## Format, and repair what lint can repair
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: $(STAMP)  ## Show the type checker where expertmix.* lives
	@mkdir -p build/types/expertmix
	@ln -sfn $(foreach floor,$(FLOORS),"$(CURDIR)/$(floor)") build/types/expertmix

bench: $(STAMP)  ## Run every benchmark, each under two minutes
	@set -e; for file in benchmarks/[a-z]*.py; do $(BIN)/python "$$file" --quick; done

docs: types  ## Build the site into site/; a warning is an error
	$(BIN)/mkdocs build --strict --quiet

lock: $(STAMP)  ## Resolve pyproject.toml anew into locks/cpu.txt (LOCK_FLAGS=--upgrade takes newer ones)
	@test -x $(UV) || { $(PYTHON) -m venv build/uv && build/uv/bin/pip install --quiet uv; }
	@$(BIN)/python locks/lock.py $(UV) $(LOCK_FLAGS)

dist: $(STAMP)  ## Build sdist and wheel into dist/ (from a clean checkout)
	rm -rf build/lib dist
	$(BIN)/python -m build --no-isolation

clean:  ## Remove what was built, not the environment
	rm -rf build dist site .pytest_cache .ruff_cache .hypothesis *.egg-info
