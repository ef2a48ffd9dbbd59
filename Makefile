# Every target does its own setup, in this folder only. `make` lists them.
SHELL := /bin/bash
.DEFAULT_GOAL := help

PYTHON ?= python3
BIN := .venv/bin
# As they were typed: neither make nor the shell interprets them.
override EXPERIMENT := $(value EXPERIMENT)
override SET := $(value SET)
override MNIST := $(value MNIST)
override LEAVES := $(value LEAVES)
export EXPERIMENT SET MNIST LEAVES

# No download is cached outside this folder; PIP_NO_CACHE_DIR=0 enables pip's cache, which uv does not use.
export PIP_NO_CACHE_DIR ?= 1
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export MPLCONFIGDIR := $(CURDIR)/.run/matplotlib
export PATH := $(CURDIR)/$(BIN):$(PATH)

help: ## List the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:[^#]*## /\t/' | expand -t 16

# Also where the interpreter that .venv was made with is gone.
.venv/ready: pyproject.toml constraints.txt $(shell [ -x $(BIN)/python ] || echo anew)
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("Python 3.11 or later is needed; this is " + sys.version.split()[0])'
	@$(PYTHON) -I tasks/host/virtual_env.py

# What only some targets need: the extras of pyproject.toml.
.venv/ready-%: .venv/ready
	@$(PYTHON) -I tasks/host/virtual_env.py $*

setup: .venv/ready ## Install what a run needs, pinned, into .venv
	@$(BIN)/python -m tasks.host.place

features: setup .venv/ready-features ## Install the frozen network that the experiment `leaves` needs

run: setup ## Run the pipeline under Prefect: make run EXPERIMENT=photos SET="data.path=PATH train.epochs=2"
	@$(BIN)/python -m flows.vae_train --experiment "$$EXPERIMENT" --set "$$SET"

up: setup ## Start the servers: Prefect, its worker, MLflow
	@$(BIN)/python -m flows.servers up

down: setup ## Stop the servers; a run in progress is cancelled
	@$(BIN)/python -m flows.servers down

test: setup .venv/ready-dev .venv/ready-docs .venv/ready-features ## Run the tests
	@$(BIN)/python -m pytest

collapse-cases: setup ## Run the collapse cases: is each verdict right, does the remedy work (an hour and a half)
	@OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.collapse_cases

zoo: # the former name
	@echo 'warning: make zoo is now make collapse-cases' >&2
	@$(MAKE) --no-print-directory collapse-cases

bench: setup .venv/ready-bench ## Time this trainer beside pythae, Lightning and a plain loop: make bench MNIST=path LEAVES=path (5 hours)
	@$(BIN)/python -m benchmarks.speed
	@$(BIN)/python -m benchmarks.time_to_quality

gpu: setup .venv/ready-dev ## What only a GPU can show, in eight minutes: make gpu MNIST=path
	@$(BIN)/python -m benchmarks.gpu

chaos: setup .venv/ready-dev ## Kill runs at random moments and cause faults; compare the results bit for bit
	@PYTHONPATH=tests:tests/chaos OMP_NUM_THREADS=1 $(BIN)/python tests/chaos/chaos.py
	@PYTHONPATH=tests:tests/chaos OMP_NUM_THREADS=1 $(BIN)/python tests/chaos/faults.py

graph: setup ## Draw docs/images/packages.svg: the imports between packages
	@$(BIN)/python docs/packages.py

docs: setup .venv/ready-docs ## Build docs/ into site/
	@NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet
	@echo 'open site/index.html; its search needs .venv/bin/mkdocs serve'

check: setup .venv/ready-dev ## Lint, format and types
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check
	@$(BIN)/python -m mypy

constraints: setup .venv/ready-dev ## Pin all dependencies again, transitive ones included
	@$(BIN)/uv pip compile pyproject.toml --all-extras --universal --python-version 3.11 --no-header --no-annotate --quiet --upgrade -o constraints.txt

clean: ## Remove everything that was made, including the environment and the stores
	@if [ -e .venv/ready ] && [ -x $(BIN)/python ]; then $(BIN)/python -m flows.servers down && $(BIN)/python -c 'from tasks import overlay; overlay.apply(None, None)'; fi
	rm -rf .venv .run .prefect .checkpoints .dvc/cache .dvc/tmp .dvc/config.local mlruns mlflow.db* models reports site data/images data/.ingest data/manifest.parquet data/collapse_cases
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

.NOTPARALLEL: # two installations into one .venv

.PHONY: anew help setup features run up down test collapse-cases zoo bench gpu chaos graph docs check constraints clean
