# make train   build the environment, then train ALGD on SafetyPointGoal1-v0 (ARGS="--seed=1" to change things)
# make test    build the environment, then run the tests          (ARGS="-m learning" to choose others)
# make bench   how fast the updates are, against plain references and floors (ARGS="--rounds 30")
# make reproduce TASK=SafetyPointGoal1-v0 SEEDS=1   a part of the benchmark, compared with the stored rows
#              (AGENT=sac_alam for one algorithm; TASK= for all tasks; SWEEP=long for 300,000 steps;
#              it continues where it was stopped)
# make lint    ruff and pyright          make lock   resolve the pins again (ARGS=--upgrade for newer ones)
# make audit   look for known vulnerabilities of the pinned packages (asks PyPI); make licences lists licences
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
TASK ?= SafetyPointGoal1-v0
AGENT ?=
SEEDS ?= 1
SWEEP ?= safety_gymnasium
STAMP := $(VENV)/.built-$(shell cat requirements.lock pyproject.toml | sha256sum | cut -c1-16)
# Without dependencies: the lock names them all, and those that safety-gymnasium pins cannot be installed.
PIP := $(BIN)/python -m pip install --disable-pip-version-check --quiet --no-deps
# Of the builds of torch pip takes the one it ranks first, as ever: with hashes it would pass over a CPU
# build in a directory (--find-links). So torch comes first, and its hash is looked up here.
TORCH := $(shell sed -n 's/^torch==\([^ ]*\).*/torch-\1/p' requirements.lock)
INSTALL_TORCH = $(BIN)/python -m pip download --disable-pip-version-check --quiet --no-deps \
    --dest $(VENV)/torch $(subst torch-,torch==,$(TORCH)) && \
  for wheel in $(VENV)/torch/*.whl; do \
    [[ ! -e $$wheel ]] || grep -q "sha256:$$(sha256sum < $$wheel | cut -c1-64)" requirements.lock || \
      echo "make: requirements.lock has no hash of $${wheel\#\#*/}; it is installed unchecked" >&2; done && \
  $(PIP) $(VENV)/torch/*.whl && rm -rf $(VENV)/torch

.PHONY: train test bench reproduce lint lock audit licences clean environment
.DELETE_ON_ERROR:

train: environment
	$(BIN)/algd train configs/algd_point_goal.yaml $(ARGS)

test: environment
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) $(ARGS)

bench: environment
	$(BIN)/algd bench $(ARGS)

reproduce: environment
	$(BIN)/algd sweep configs/benchmark/$(SWEEP).yaml --seeds $(SEEDS) --dir runs/$(SWEEP) \
	  $(if $(TASK),--only env.id=$(TASK)) $(if $(AGENT),--only base=$(AGENT)) $(ARGS)
	$(BIN)/python -m tests.benchmarks.evidence check runs/$(SWEEP)

lint: environment
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

environment: $(STAMP)

$(STAMP): | interpreter
	@if compgen -G '$(VENV)/.built-*' >/dev/null; then rm -f $(VENV)/.built-*; \
	else $(PYTHON) -m venv --clear $(VENV); fi
	@echo "Installing the pinned packages into $(VENV) (once; torch is the large one)"
	@compgen -G '$(VENV)/lib/python*/site-packages/$(TORCH)[+.]*dist-info' >/dev/null || { $(INSTALL_TORCH); }
	@$(PIP) --require-hashes -r requirements.lock
	@! grep -qs '^Requires-Dist: nvidia-' $(VENV)/lib/python*/site-packages/torch-*.dist-info/METADATA || \
	  $(PIP) --require-hashes -r <(sed -n 's/^#cuda //p' requirements.lock)
	@$(PIP) --no-build-isolation --editable .
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
	sed -e 's/^#cuda //' -e '/ --hash/d' -e 's/ \\$$//' requirements.lock > $(VENV)/lock
	$(BIN)/uv pip compile pyproject.toml --group safety --all-extras --universal --python-version 3.11 \
	  --only-binary :all: --generate-hashes --no-header --no-annotate --quiet --output-file $(VENV)/lock $(ARGS)
	@{ sed -n '/^# /p' requirements.lock; \
	  sed '/^#/d' $(VENV)/lock | awk -v builds="$$(sed -n 's/^# torch //p' requirements.lock)" "$$LOCK_LINES"; \
	  } > $(VENV)/requirements.lock
	mv $(VENV)/requirements.lock requirements.lock

# The lines of the lock from uv's: packages of the CUDA build are marked, hashes of torch's CPU builds added.
define LOCK_LINES
/^[a-z]/ { mark = /^(nvidia-|cuda-|triton)/ ? "#cuda " : "" }
{ print mark $$0 }
/^torch==/ {
  for (count = split(builds, build, "\n"); count; count--) {
    split(build[count], part, " ")
    if ("torch==" part[1] == $$1) { known = 1; print "    --hash=sha256:" part[4] " \\" }
  }
  if (!known) print "make: give the hashes of the CPU builds of " $$1 " at the head of the lock" > "/dev/stderr"
}
endef
export LOCK_LINES

audit: environment
	$(BIN)/pip-audit --strict --require-hashes --disable-pip --requirement requirements.lock $(ARGS)

licences: environment
	$(BIN)/python tests/licences.py

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache .hypothesis .benchmarks build dist
	find alam algd tests -name __pycache__ -prune -exec rm -rf {} +
