# Everything runs in .venv. A target that needs it makes it first, brings it up to date when pyproject.toml has changed,
# and makes it anew after an interrupted set-up or damage; otherwise it starts at once.

VENV := .venv
PY := $(VENV)/bin/python
READY := $(VENV)/.ready
OLDEST := .venv-oldest

# The first of these that runs and is recent enough; or choose: make PYTHON=/path/to/python demo
PYTHON ?= $(shell for name in python3 python3.13 python3.12 python3.11; do \
	$$name -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$name && break; done)

# For `make test` and `make oldest`: the last tests of one worker go to those that are done.
ON_ALL_CORES := --numprocesses auto --maxprocesses 8 --dist worksteal

# For `make weights`.
MINUTES ?= 25

NO_PYTHON = eeutils needs Python 3.11 or later, and python3 here is "$$(python3 --version 2>&1)". Install a later \
	one, or name one that is not on the PATH: make PYTHON=/path/to/python3.12 demo
NO_VENV = $(PYTHON) cannot make virtual environments. Install what is missing, on Debian and Ubuntu: \
	sudo apt install python3-venv
NO_PACKAGES = The packages could not be installed; the reason is above. Without a network nothing can be; behind a \
	mirror, name it in PIP_INDEX_URL and UV_DEFAULT_INDEX. Then run make again.
NO_TORCH = torch and torchvision do not work together here; the reason is above. Run make again, which starts from \
	an empty $(VENV); if that ends here too, UV_NO_CACHE=1 make demo downloads everything anew.

# An environment that is there but no longer whole is made anew.
FIND_PACKAGES := import importlib.util as util; assert all(map(util.find_spec, ("uv", "torch", "torchvision", "pytest")))
ifneq ($(wildcard $(READY)),)
ifneq ($(shell $(PY) -c '$(FIND_PACKAGES)' >/dev/null 2>&1 && echo whole),whole)
$(shell rm -f $(READY))
endif
endif

.PHONY: help demo test oldest lint notebooks results weights bench clean

help: ## list these targets
	@sed -n 's/^\([a-z]*\):.*## /\1 /p' Makefile | while read -r name text; do printf '  make %-10s %s\n' $$name "$$text"; done

demo: $(READY) ## get CIFAR-10, run the trained networks over it, and leave early for real
	$(PY) -m tools.demo

test: $(READY) ## run all tests
	$(PY) -m pytest $(ON_ALL_CORES)

oldest: $(READY) ## run them with the oldest versions that pyproject.toml allows, in an environment of their own
	$(PYTHON) -m venv --clear $(OLDEST)
	$(OLDEST)/bin/python -m pip install --quiet uv
	$(OLDEST)/bin/python -m uv pip install --python $(OLDEST)/bin/python --resolution lowest-direct --editable '.[dev]'
	$(OLDEST)/bin/python -m pytest $(ON_ALL_CORES) --ignore tests/test_setup.py

lint: $(READY) ## check style and format of code and notebooks
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .

notebooks: $(READY) ## run all notebooks and keep their outputs
	$(PY) -m tools.notebooks

results: $(READY) ## compute the result tables anew from the shipped weights
	$(PY) -m tools.results

weights: $(READY) ## train networks that are not trained yet, for MINUTES (25) at a time
	$(PY) -m tools.train_missing --missing --minutes $(MINUTES)

bench: $(READY) ## measure the cascade against the whole network, our evaluations against older ones, and ways to choose thresholds
	$(PY) -m tools.benchmarks.cascade --plain resnet18-avg-cifar10-w16
	$(PY) -m tools.benchmarks.cascade --weights resnet18_3exits-conv+conv+spp-cifar10-w32 --out results/benchmark_w32.md
	$(PY) -m tools.benchmarks.sdn_evaluation
	$(PY) -m tools.benchmarks.threshold_choice

clean: ## remove .venv and caches inside this folder; data and weights fetched elsewhere stay
	rm -rf $(VENV) $(OLDEST) .pytest_cache .ruff_cache .hypothesis *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# uv takes torch and torchvision from one index, as a pair; pip on some machines mixes two builds that do not match.
$(READY): pyproject.toml
	@test -n "$(PYTHON)" || { echo "$(NO_PYTHON)"; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo "$(NO_VENV)"; exit 1; }
	@echo "Setting up $(VENV) with $(PYTHON); the first time this downloads some 3 GB."
	test -e $@ || $(PYTHON) -m venv --clear $(VENV)
	@rm -f $@
	@$(PY) -m pip install --quiet uv || { echo "$(NO_PACKAGES)"; exit 1; }
	$(PY) -m uv pip install --python $(PY) --editable '.[dev]' || { echo "$(NO_PACKAGES)"; exit 1; }
	@$(PY) -c 'import torchvision' || { echo "$(NO_TORCH)"; exit 1; }
	@touch $@
