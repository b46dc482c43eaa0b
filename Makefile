# Every target sets up what it needs: `make demo` and `make test` work on a fresh machine.
.DEFAULT_GOAL := help
.PHONY: help setup demo test quick check static format lint types layers picture architecture artifacts leaderboard bench codec unchanged kernels gpu cuda campaigns faults wheel clean

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# Warnings are left out of the install: setuptools notes there how it links `segpt.commands`, which
# lies beside the package and not in it. It is no fault, and nothing can be done about it.

help:  ## what there is to make
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 14

setup: $(READY)  ## the virtual environment and the install

$(READY): pyproject.toml constraints.txt
	@echo "setup, 1 of 3: a virtual environment in $(VENV)"
	@$(PYTHON) -m venv $(VENV)
	@echo "setup, 2 of 3: a current pip"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade pip
	@echo "setup, 3 of 3: segpt and what it needs; torch is large, so this takes some minutes"
	@PYTHONWARNINGS=ignore $(BIN)/python -m pip install --disable-pip-version-check \
		--constraint constraints.txt --group dev --editable .
	@touch $(READY)
	@echo "setup is done: $(BIN)/segpt --help"

demo: setup  ## train, quantize, pack and score a small model, in about five minutes
	$(BIN)/segpt demo

# One thread a process: two busy threads on each of two busy cores stall each other.
test: setup  ## all tests that need no GPU
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --dist loadfile \
		--no-loadscope-reorder -m "not cuda and not campaign"

quick: setup  ## the tests that take a moment each
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --quiet --numprocesses auto --dist loadfile \
		-m "not cuda and not campaign and not slow"

check: static artifacts  ## style, types, import contracts, pictures, artifacts, leaderboard

static: lint types layers picture leaderboard  ## what `make check` does and `make test` does not

format: setup  ## rewrite files into shape
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

lint: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: setup
	$(BIN)/mypy

layers: setup
	$(BIN)/lint-imports

picture: setup
	$(BIN)/python -m bench.architecture --check

architecture: setup  ## draw docs/architecture.svg from the import graph
	$(BIN)/python -m bench.architecture

artifacts: setup  ## reference artifacts: digest, size, repacking, score
	$(BIN)/python -m pytest -q tests/artifacts

leaderboard: setup  ## records are consistent and the page is up to date
	$(BIN)/segpt leaderboard check
	$(BIN)/segpt leaderboard render --check

bench: setup  ## speed ratios, measured in one run, to bench/results/
	$(BIN)/python -m bench

codec: setup  ## the codec's bytes and quality against the field's, over three seeds: many hours
	$(BIN)/python -m bench.codec
	$(BIN)/python -m bench.codec --render

unchanged: setup  ## whether every command does what it did in a commit: make unchanged BASE=COMMIT
	$(BIN)/python -m bench.unchanged $(BASE)

kernels: setup  ## compile every Triton kernel for five generations of GPUs, and predict times
	$(BIN)/python -m bench.kernel_builds --cases usual --render

gpu: setup  ## check every kernel on a GPU, then measure: at most eight minutes, to bench/results/
	$(BIN)/python -m bench.gpu

cuda: setup  ## the tests that need a GPU
	$(BIN)/python -m pytest -m cuda

campaigns: setup  ## the long campaigns: the demo over seeds, kills during recovery
	$(BIN)/python -m pytest -m campaign

faults: setup  ## kills, full disks and rivals for every command that writes, in about ten minutes
	OMP_NUM_THREADS=1 $(BIN)/python tests/campaign/faults_at_work.py

wheel: setup  ## build the wheel and run it from outside the checkout
	rm -rf dist build
	$(BIN)/python -m build --quiet
	$(BIN)/python -m pip install --quiet --no-deps --target dist/site dist/*.whl
	cd / && PYTHONPATH=$(CURDIR)/dist/site $(CURDIR)/$(BIN)/python -m segpt --version

clean:  ## remove everything that make made
	rm -rf $(VENV) dist build
