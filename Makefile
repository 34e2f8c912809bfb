# Everything runs in .venv. A target that needs it makes it first, and brings it up to date when pyproject.toml changes.

VENV := .venv
PY := $(VENV)/bin/python
READY := $(VENV)/.ready
OLDEST := .venv-oldest

# The first of these that runs and is recent enough; or choose: make PYTHON=/path/to/python demo
PYTHON ?= $(shell for name in python3 python3.13 python3.12 python3.11; do \
	$$name -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$name && break; done)

# Workers that are done take over tests from the others.
ON_ALL_CORES := --numprocesses auto --maxprocesses 8 --dist worksteal

# For `make weights`.
MINUTES ?= 25

# An environment that is there but no longer whole is made anew.
ifneq ($(wildcard $(READY)),)
ifneq ($(shell $(PY) -c 'import uv, torch, torchvision, pytest' 2>/dev/null && echo whole),whole)
$(shell rm -f $(READY))
endif
endif

.PHONY: help demo lab test test-fast test-all oldest lint notebooks results weights bench clean

help: ## list these targets
	@sed -n 's/^\([a-z-]*\):.*## /\1 /p' Makefile | while read -r name text; do printf '  make %-10s %s\n' $$name "$$text"; done

demo: $(READY) ## get CIFAR-10, run trained networks over it, and leave early for real
	$(PY) -m tools.demo

lab: $(READY) ## open the notebooks in JupyterLab
	cd notebooks && ../$(PY) -m jupyter lab

test: $(READY) ## run the tests
	$(PY) -m pytest $(ON_ALL_CORES) -m "not slow"

test-fast: $(READY) ## run the tests that take no more than a moment
	$(PY) -m pytest $(ON_ALL_CORES) -m "not slow and not long"

test-all: $(READY) ## run all tests, those that take minutes too
	$(PY) -m pytest $(ON_ALL_CORES)

oldest: $(READY) ## run the tests with the oldest versions that pyproject.toml allows
	$(PYTHON) -m venv --clear $(OLDEST)
	$(OLDEST)/bin/python -m pip install --quiet uv
	$(OLDEST)/bin/python -m uv pip install --python $(OLDEST)/bin/python --resolution lowest-direct --editable '.[dev]'
	$(OLDEST)/bin/python -m pytest $(ON_ALL_CORES) -m "not slow"

lint: $(READY) ## check style and format of code and notebooks
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .

notebooks: $(READY) ## run all notebooks and keep their outputs
	$(PY) -m tools.notebooks

results: $(READY) ## recompute the result tables from the shipped weights
	$(PY) -m tools.results

weights: $(READY) ## train networks that are not trained yet, for MINUTES (25) at a time
	$(PY) -m tools.train_missing --missing --minutes $(MINUTES)

bench: $(READY) ## measure cascades against what else one could run, and ways to choose thresholds
	$(PY) -m tools.benchmarks.cascade
	$(PY) -m tools.benchmarks.sdn_evaluation
	$(PY) -m tools.benchmarks.threshold_choice

clean: ## remove .venv and caches inside this folder; data and weights fetched elsewhere stay
	rm -rf $(VENV) $(OLDEST) .pytest_cache .ruff_cache .hypothesis *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# uv takes torch and torchvision from one index, as a pair; pip on some machines mixes two builds that do not match.
$(READY): pyproject.toml
	@test -n "$(PYTHON)" || { echo "eeutils needs Python 3.11 or later; name one: make PYTHON=/path/to/python3.12 demo"; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo "$(PYTHON) lacks venv; on Debian: sudo apt install python3-venv"; exit 1; }
	@echo "Setting up $(VENV) with $(PYTHON); the first time this downloads some 3 GB."
	test -e $@ || $(PYTHON) -m venv --clear $(VENV)
	@rm -f $@
	$(PY) -m pip install --quiet uv
	$(PY) -m uv pip install --python $(PY) --editable '.[dev]'
	@$(PY) -c 'import torchvision' || { echo "torch and torchvision do not match; run make again with UV_NO_CACHE=1"; exit 1; }
	@touch $@
