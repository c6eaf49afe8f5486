# SPDX-License-Identifier: Apache-2.0
# Two commands do everything on a machine with python3 (3.10 or newer), make and g++:
#   make run     make .venv, install, and let the embedded model improve itself   (ARGS="--seed 2" goes to rzero run)
#   make test    the same set-up plus ruff, mypy and the tests
# make test-gpu-code checks the GPU kernels as far as that goes without a GPU.
# A second call finds the stamps in .venv and goes straight on. `make clean` removes what was built, not .venv.

PYTHON ?= python3
VENV   ?= .venv
MODELS ?= .models
ARGS   ?=
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip --disable-pip-version-check

META   := pyproject.toml setup.py constraints.txt
NATIVE := $(wildcard csrc/*)
ROOMS  := python/rzero engine kernels
TREE   := build/typecheck/rzero

.PHONY: run test lint types unit test-gpu-code test-interpreted test-compiled test-models test-harness format clean
.DELETE_ON_ERROR:

run: $(VENV)/.installed
	$(BIN)/rzero run $(ARGS)

test: lint types unit

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# The three rooms lie apart on disk and together at import; mypy is shown them as Python sees them.
types: $(VENV)/.dev
	rm -rf $(TREE) && mkdir -p $(TREE)
	for entry in python/rzero/*; do ln -s "$(CURDIR)/$$entry" $(TREE)/; done
	ln -s "$(CURDIR)/engine" "$(CURDIR)/kernels" $(TREE)/
	$(BIN)/mypy -p rzero

unit: $(VENV)/.dev
	$(BIN)/python -m pytest

# Triton interprets or compiles, never both in one process. make -j2 does both at a time.
test-gpu-code: test-interpreted test-compiled

test-interpreted: $(VENV)/.dev
	TRITON_INTERPRET=1 $(BIN)/python -m pytest -rs tests/triton

test-compiled: $(VENV)/.dev
	$(BIN)/python -m pytest -rs tests/aot tests/cuda

# The tests that need the real language models; MODELS is the folder that holds them.
test-models: $(VENV)/.dev
	$(BIN)/python -m pytest -m models --models-dir="$(MODELS)"

# The adapter for lm-evaluation-harness; elsewhere its tests are skipped, as the harness is large.
test-harness: $(VENV)/.dev
	$(PIP) install -q -c constraints.txt -e '.[eval]'
	$(BIN)/python -m pytest tests/rzero/test_lm_eval.py

format: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "rzero needs Python 3.10 or newer, not %d.%d" % sys.version_info[:2])'
	$(PYTHON) -m venv $(VENV)

# Editable: a change to the Python code needs no new install, a change to the C++ code builds again.
$(VENV)/.installed: $(VENV)/bin/python $(META) $(NATIVE)
	$(PIP) install -q -c constraints.txt -e .
	@$(BIN)/python -c 'import importlib.util, sys; sys.exit(not importlib.util.find_spec("rzero._native"))' || echo 'note: the C++ kernels were not built (is g++ there?); the reference kernels are much slower'
	touch $@

$(VENV)/.dev: $(VENV)/.installed
	$(PIP) install -q -c constraints.txt -e '.[dev,models]'
	touch $@

clean:
	rm -rf build dist *.egg-info python/*.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
