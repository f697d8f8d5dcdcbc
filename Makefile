# Every target works from a clean clone with python3 (3.11 or later), pip and make.
# The environment is .venv; it is made again only when pyproject.toml or constraints.txt changes.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
PACKAGES := admg pipeline jobs tests

# The demo's folder; hidden and ignored by git.
DEMO := .demo
DEMO_ROWS ?= 56
DEMO_TOKENS ?= 64

# Processes that run the tests, a file at a time each, one thread of arithmetic in each. Tests wait
# for Ray more than they compute: three keep two cores busy.
TEST_WORKERS ?= 3

.DEFAULT_GOAL := help
.PHONY: help setup run test lint format docs bench test-gpu clean

help: ## Show the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(READY) ## Make .venv and install the project with its test tools

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info >= (3, 11) else "make: $(PYTHON) is Python %d.%d; 3.11 or later is needed (make PYTHON=python3.12 ...)" % sys.version_info[:2])'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test]'
	@touch $@

run: setup ## Summarise Python's own documentation with the demo model (2 minutes, and as long to install)
	@rm -rf $(DEMO)
	$(BIN)/admg-batch prepare demo --output $(DEMO)/prompts --limit $(DEMO_ROWS)
	$(BIN)/admg-batch run --input $(DEMO)/prompts --output $(DEMO)/output --model demo \
		--chat --max-tokens $(DEMO_TOKENS) --keep topic --drafter auto

test: lint ## Lint, types, layers, documentation and every test without slow, gpu, cluster
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(TEST_WORKERS) --dist loadfile --no-loadscope-reorder \
		-m "not slow and not gpu and not cluster"

lint: setup ## Style, format, types (admg, pipeline) and layers
	$(BIN)/ruff check $(PACKAGES)
	$(BIN)/ruff format --check $(PACKAGES)
	$(BIN)/mypy
	$(BIN)/lint-imports

format: setup ## Put the code in the project's format
	$(BIN)/ruff check --fix $(PACKAGES)
	$(BIN)/ruff format $(PACKAGES)

docs: setup ## Write the commands' --help into the README
	$(BIN)/python tests/contracts/help_blocks.py --write

bench: setup ## Measure against plain decoding and transformers
	$(BIN)/admg-batch bench engine

test-gpu: setup ## The tests that need a CUDA device, 8 minutes at most
	$(BIN)/python -m pytest -m gpu --session-timeout 480

clean: ## Remove the demo's output and the tools' caches (not .venv)
	rm -rf $(DEMO) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
