# A fresh machine needs Python 3.11 to 3.13, pip and make. `make run` and `make test` set everything else up in .venv.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
JOB ?= jobs/digits_cnn.yaml

.DEFAULT_GOAL := help
.PHONY: help setup run test test-slow test-again test-all soak check format bench clean

help: ## Show what can be made
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'

setup: $(READY) ## Make or refresh .venv

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' || \
		{ echo "Python 3.11 to 3.13 is needed; say which one: make PYTHON=python3.12"; exit 4; }
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@echo "installing into .venv (a few minutes the first time)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@rm -rf orchestrator.egg-info # left by the build; python run here would read plug-ins from it, also when they are old
	@touch $(READY)

run: $(READY) ## Train jobs/digits_cnn.yaml on two local workers (JOB=... for another)
	@$(BIN)/orchestrator run $(JOB)

test: $(READY) ## The default tests: under 15 minutes on two cores
	@$(BIN)/python -m pytest -m "not slow and not soak"

test-slow: $(READY) ## What `make test-all` adds to `make test`
	@$(BIN)/python -m pytest -m "slow and not soak" $(ARGS)

test-again: $(READY) ## Those of `make test-slow` that failed last time
	@$(BIN)/python -m pytest -m "slow and not soak" --last-failed --last-failed-no-failures none $(ARGS)

test-all: test test-slow ## Everything but the soak tests

soak: $(READY) ## Full fault matrices and floods; takes long, prints its figures
	@$(BIN)/python -m pytest -m soak -s --timeout 3600

check: $(READY) ## Formatter, linter, types, import contracts
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-cache

format: $(READY) ## Let the formatter and the linter mend what they can
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

bench: $(READY) ## Benchmarks: ratios within one run, printed as a table
	@$(BIN)/python -m tests.benchmarks

clean: ## Remove .venv and caches (never your runs)
	rm -rf .venv build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
