# make train   build the environment, then train ALGD on SafetyPointGoal1-v0 (ARGS="--seed=1" to change things)
# make test    build the environment, then run the tests          (ARGS="-m learning" to choose others)
# make bench   how fast the updates are, against plain references and floors (ARGS="--rounds 30")
# make lint    ruff and pyright          make lock   resolve the pins again (ARGS=--upgrade for newer ones)
# make clean   remove the environment and every cache
#
# The environment is built once. Its stamp is a file inside it, named after the content of the lock
# and of pyproject.toml, written last: a change of either updates the environment, an interrupted
# build leaves no stamp and starts again from nothing.

SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
JOBS ?= 2
ARGS ?=
# Its own pins cannot be installed on Python >= 3.11, hence apart from the lock and without dependencies.
SAFETY_GYMNASIUM := safety-gymnasium==1.0.0
STAMP := $(VENV)/.built-$(shell cat requirements.lock pyproject.toml | sha256sum | cut -c1-16)
PIP := $(BIN)/python -m pip install --disable-pip-version-check --quiet

.PHONY: train test bench lint lock clean environment
.DELETE_ON_ERROR:

train: environment
	$(BIN)/algd train configs/algd_point_goal.yaml $(ARGS)

test: environment
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) $(ARGS)

bench: environment
	$(BIN)/algd bench $(ARGS)

lint: environment
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

environment: $(STAMP)

$(STAMP): | interpreter
	@if compgen -G '$(VENV)/.built-*' >/dev/null; then rm -f $(VENV)/.built-*; \
	else $(PYTHON) -m venv --clear $(VENV); fi
	@echo "Installing the pinned packages into $(VENV) (once; torch is the large one)"
	@$(PIP) -r requirements.lock
	@$(PIP) --no-deps $(SAFETY_GYMNASIUM)
	@$(PIP) --no-deps --no-build-isolation --editable .
	@touch $@

.PHONY: interpreter
interpreter:
	@command -v $(PYTHON) >/dev/null || { \
	  echo "make: $(PYTHON) was not found. Install Python >= 3.11, or name one: make PYTHON=/path/to/python3" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "make: algd needs Python >= 3.11, $(PYTHON) is $$($(PYTHON) -V 2>&1 | cut -d' ' -f2). Name a newer one: make PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	  echo "make: $(PYTHON) lacks the venv module. On Debian or Ubuntu: apt install python3-venv" >&2; exit 1; }

lock: environment
	cp requirements.lock $(VENV)/lock
	$(BIN)/uv pip compile pyproject.toml --all-extras --universal --python-version 3.11 \
	  --only-binary :all: --no-header --no-annotate --quiet --output-file $(VENV)/lock $(ARGS)
	@{ sed -n '/^#/p' requirements.lock; \
	  grep -v -E '^(#|nvidia-|cuda-|triton)' $(VENV)/lock; } > $(VENV)/requirements.lock
	mv $(VENV)/requirements.lock requirements.lock

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache .hypothesis .benchmarks build dist
	find alam algd tests -name __pycache__ -prune -exec rm -rf {} +
