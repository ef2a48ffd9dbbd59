# Every target does its own set-up, in this folder and nowhere else. `make` alone lists them.
SHELL := /bin/bash
.DEFAULT_GOAL := help

PYTHON ?= python3
BIN := .venv/bin
# Handed to the program through the environment, so that the shell never reads them.
export EXPERIMENT ?=
export SET ?=

# Downloads are not kept outside this folder; PIP_NO_CACHE_DIR=0 uses pip's own cache.
export PIP_NO_CACHE_DIR ?= 1
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export MPLCONFIGDIR := $(CURDIR)/.run/matplotlib
export PATH := $(CURDIR)/$(BIN):$(PATH)

help: ## List the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:[^#]*## /\t/' | expand -t 16

.venv/ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("Python 3.11 or later is needed; this is " + sys.version.split()[0])'
	@echo 'installing into .venv: some 2 GB, a few minutes'
	@$(PYTHON) -m venv .venv
	@$(BIN)/pip install --quiet --editable '.[dev,docs,huggingface]' --constraint constraints.txt
	@touch $@

.dvc/config.local: .venv/ready
	@# DVC's own cache of hashes in this folder; the path has to be absolute, so it is written here and not committed.
	@$(BIN)/dvc config --local core.site_cache_dir '$(CURDIR)/.run/dvc'
	@# An archive without history: DVC can do without Git, once told so.
	@[ -e .git ] || $(BIN)/dvc config --local core.no_scm true
	@touch $@

setup: .venv/ready .dvc/config.local ## Install everything, pinned, into .venv

run: setup ## Run the pipeline under Prefect: make run EXPERIMENT=leaves SET="data.path=photos train.epochs=2"
	@$(BIN)/python -m flows.vae_train --experiment "$$EXPERIMENT" --set "$$SET"

up: setup ## Start the servers: Prefect, its worker, MLflow
	@$(BIN)/python -m flows.servers up

down: setup ## Stop the servers; a run in progress is cancelled
	@$(BIN)/python -m flows.servers down

test: setup ## Run the tests
	@$(BIN)/python -m pytest

collapse-cases: setup ## Run the collapse cases: is each verdict right, does the remedy work (10 minutes)
	@OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.collapse_cases

zoo: collapse-cases
	@echo 'warning: `make zoo` is now `make collapse-cases`' >&2

bench: setup ## Time this trainer beside pythae, Lightning and a plain loop (half an hour)
	@$(BIN)/pip install --quiet --editable '.[bench]' --constraint constraints.txt
	@$(BIN)/python -m benchmarks.speed

chaos: setup ## Kill runs at random moments and bring faults about: is what they leave the same to the bit
	@PYTHONPATH=tests:tests/chaos OMP_NUM_THREADS=1 $(BIN)/python tests/chaos/chaos.py
	@PYTHONPATH=tests:tests/chaos OMP_NUM_THREADS=1 $(BIN)/python tests/chaos/faults.py

graph: setup ## Draw docs/images/packages.svg: which package imports which
	@$(BIN)/python docs/packages.py

docs: setup ## Build the pages of docs/ into site/
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo 'open site/index.html; for its search: .venv/bin/mkdocs serve'

check: setup ## Lint, format and types
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check
	@$(BIN)/mypy

constraints: setup ## Pin the whole transitive set anew
	@$(BIN)/uv pip compile pyproject.toml --all-extras --universal --python-version 3.11 --no-header --no-annotate --quiet --upgrade -o constraints.txt

clean: ## Remove what was made, the environment and the stores included
	@if [ -x $(BIN)/python ]; then $(BIN)/python -m flows.servers down && $(BIN)/python -c 'from tasks import overlay; overlay.apply(None, None)'; fi
	rm -rf .venv .run .prefect .checkpoints .dvc/cache .dvc/tmp .dvc/config.local mlruns mlflow.db* models reports site data/images data/.ingest data/manifest.parquet data/collapse_cases
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

.PHONY: help setup run up down test collapse-cases zoo bench chaos graph docs check constraints clean
