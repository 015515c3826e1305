# Everything happens in .venv, which is made when it is first needed and renewed when
# pyproject.toml or constraints.txt change. README.md, "Installing", says what can be chosen.

PYTHON ?= python3
OUT ?= demo
ENV := .venv
RUN := $(ENV)/bin/python
PIP := $(RUN) -m pip --disable-pip-version-check --quiet
SIDE_BY_SIDE := -n auto --maxprocesses 4 --dist loadfile
TORCH := $(shell sed -n 's/^torch==//p' constraints.txt)
CPU_INDEX := https://download.pytorch.org/whl/cpu

.PHONY: help demo demo-llm install test test-slow test-long bench format clean

help: ## Say what can be made
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' Makefile
	@echo "Settings: OUT=$(OUT) (the run of the demo), MODEL (of demo-llm), PYTHON=$(PYTHON) (3.11 or later), TORCH_INDEX"

demo: $(ENV)/.runtime ## Label the embedded toy model from text to scored labels, into OUT
	$(ENV)/bin/scopenote demo --out $(OUT)

demo-llm: $(ENV)/.runtime ## The same, and 50 features labelled by MODEL at OPENAI_BASE_URL or OpenAI
	@test -n "$(MODEL)" || { \
	    echo "Name the model: make demo-llm MODEL=gpt-4o-mini" >&2; \
	    echo "  with OPENAI_API_KEY in the environment, or OPENAI_BASE_URL for another endpoint" >&2; \
	    exit 1; }
	$(ENV)/bin/scopenote demo --out $(OUT)-llm --model "$(MODEL)"

install: $(ENV)/.runtime ## Install the package and what it needs into .venv

test: $(ENV)/.dev $(ENV)/types/scopenote ## Format check, lint, types and tests
	$(RUN) -m ruff format --check .
	$(RUN) -m ruff check .
	cd $(ENV)/types && ../bin/python -m mypy --config-file ../../pyproject.toml -p scopenote
	$(RUN) -m pytest $(SIDE_BY_SIDE)

test-slow: $(ENV)/.dev ## The tests that take longer
	@# Status 5 means that there are none.
	$(RUN) -m pytest $(SIDE_BY_SIDE) -m "slow and not long" || test $$? -eq 5

test-long: $(ENV)/.dev ## The tests that take minutes each: processes killed at any moment, and the like
	$(RUN) -m pytest $(SIDE_BY_SIDE) -m long

bench: $(ENV)/.dev ## Measure speed and memory
	@set -e; for file in tests/benchmarks/[a-z]*.py; do \
	    test -e "$$file" || { echo "There are no benchmarks."; exit 0; }; \
	    echo "$$file"; $(RUN) "$$file"; \
	done

format: $(ENV)/.dev ## Lay out the code and mend what lint can mend
	$(RUN) -m ruff check --fix .
	$(RUN) -m ruff format .

clean: ## Remove .venv and caches; runs such as demo/ stay
	rm -rf $(ENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(ENV)/.made:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	    found=`$(PYTHON) --version 2>/dev/null || echo missing`; \
	    echo "Scopenote needs Python 3.11 or later; $(PYTHON) is $$found." >&2; \
	    echo "  Name another: make PYTHON=python3.12 demo" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	    echo "$(PYTHON) lacks the module venv or ensurepip." >&2; \
	    echo "  On Debian and Ubuntu: apt install python3-venv" >&2; exit 1; }
	$(PYTHON) -m venv $(ENV)
	@touch $@

# PyPI's torch for Linux is the CUDA build, gigabytes of it. Without an NVIDIA GPU the CPU build
# is taken: from where pip looks anyway if it is there, else from PyTorch's own index.
$(ENV)/.torch: constraints.txt | $(ENV)/.made
	@if [ -n "$(TORCH_INDEX)" ]; then \
	    echo "Installing torch $(TORCH) from $(TORCH_INDEX)"; \
	    $(PIP) install --no-deps --index-url "$(TORCH_INDEX)" "torch==$(TORCH)"; \
	elif [ "$(origin TORCH_INDEX)" = undefined ] && [ "$$(uname -s)" = Linux ] \
	    && ! nvidia-smi -L 2>/dev/null | grep -q '^GPU'; then \
	    echo "Installing torch $(TORCH), the CPU build: there is no NVIDIA GPU"; \
	    $(PIP) install --no-deps "torch==$(TORCH)+cpu" 2>/dev/null \
	    || $(PIP) install --no-deps --index-url $(CPU_INDEX) "torch==$(TORCH)+cpu" \
	    || { echo "The CPU build of torch $(TORCH) cannot be had from $(CPU_INDEX)." >&2; \
	        echo "  Another index that has it: make TORCH_INDEX=URL ..." >&2; \
	        echo "  Whatever build pip finds by itself: make TORCH_INDEX= ..." >&2; exit 1; }; \
	fi
	@touch $@

$(ENV)/.runtime: pyproject.toml constraints.txt $(ENV)/.torch
	@echo "Installing Scopenote and about 130 packages that it needs"
	$(PIP) install --constraint constraints.txt --editable .
	@touch $@

$(ENV)/.dev: pyproject.toml constraints.txt $(ENV)/.torch
	@echo "Installing Scopenote, about 130 packages that it needs, and those of its tests"
	$(PIP) install --constraint constraints.txt --editable '.[dev]'
	@touch $(ENV)/.runtime $@

# mypy wants the package under its name, whatever the checkout's folder is called.
$(ENV)/types/scopenote: | $(ENV)/.made
	@mkdir -p $(ENV)/types
	@ln -s ../.. $@
