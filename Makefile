# For people and for .ci/run alike. `make help` lists the targets.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
AREA ?=

# Shared machines: waiting OpenMP threads must sleep instead of spinning (it decides timings by a factor of ten).
export OMP_WAIT_POLICY := PASSIVE

.DEFAULT_GOAL := help
.PHONY: help install demo test check format targets readme clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test,check]'
	@touch $@

install: $(VENV)/installed  ## make the environment in .venv

demo: $(VENV)/installed  ## run both halves on real data and write demo-report/index.html
	$(BIN)/fisherlayers demo --output demo-report

test: $(VENV)/installed  ## set up and run the tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --durations 10

check: $(VENV)/installed  ## lint and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/installed  ## format the code
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix-only .

targets: $(VENV)/installed  ## targets beside measured figures (AREA=race for one area)
	@$(BIN)/python -m benchmarks.targets $(AREA)

readme: $(VENV)/installed  ## write the README's table of results from benchmarks/results
	$(BIN)/python -m benchmarks.table

clean:  ## remove everything that make created
	rm -rf $(VENV) demo-report .pytest_cache .mypy_cache .ruff_cache .hypothesis build dist
