# make demo and make test each do all set-up on a machine that has only Python (3.10 or later, with venv) and make.

PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
# Installed once for each state of these files; a second call finds the stamp and does nothing.
STAMP  := $(VENV)/.installed-$(shell cat pyproject.toml constraints.txt | cksum | cut -d' ' -f1)
OUT    ?= runs/demo

.PHONY: help setup demo test lint format bench ui clean

help:
	@echo "make demo    raw videos to a graded text-to-video model, on this machine, in minutes"
	@echo "make test    all tests          make lint    style, types, arrows between packages"
	@echo "make bench   measure the claims of docs/benchmarks.md"
	@echo "make ui      the dashboard on runs/              make clean   remove what was built, keep runs/"

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	rm -f $(VENV)/.installed-*
	touch $@

demo: setup
	$(BIN)/kineo demo --out $(OUT)

# Two tests at a time, each with one thread: most start processes of their own, few keep two cores busy.
test: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder $(PYTEST_ARGS)

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: setup
	$(BIN)/python -m tests.bench

ui: setup
	$(BIN)/kineo ui runs

clean:
	rm -rf $(VENV) build *.egg-info platform/*.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
