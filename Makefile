# Everything a developer does, as one word each. `make help` lists it.
# The environment is .venv at the root, installed from requirements.txt (versions and hashes); nothing outside it is changed.

PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed
SITE := build/compiled/site
COMPILED := build/compiled/.built
# What is measured is the compiled hub, where it can be built.
MEASURED = if $(MAKE) --no-print-directory compiled; then export PYTHONPATH="$(CURDIR)/$(SITE)"; \
	else echo "make: no compiled hub; the interpreted one is measured" >&2; fi; $(BIN)/python

.DEFAULT_GOAL := help
.PHONY: help venv demo dev test test-compiled check protos docs compiled bench bench-large campaign lock clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-13s %s\n", $$1, $$2}' Makefile

venv: $(STAMP) ## set up .venv from the lock file (does nothing when it is up to date)

# The environment is made anew only if it cannot run; uv is used where it is present, pip where it is not.
$(STAMP): requirements.txt pyproject.toml
	@set -eu; \
	if command -v uv >/dev/null 2>&1; then \
	  $(BIN)/python -c pass 2>/dev/null || { rm -rf .venv; uv venv --quiet --python '>=3.11' .venv; }; \
	  uv pip install --quiet --python $(BIN)/python --require-hashes -r requirements.txt; \
	  uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation -e .; \
	else \
	  if ! $(BIN)/python -m pip --version >/dev/null 2>&1; then \
	    $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	      echo "make: erxhub needs Python 3.11 or newer; $(PYTHON) is older or absent. Try: make venv PYTHON=python3.12" >&2; exit 1; }; \
	    $(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	      echo "make: $(PYTHON) cannot make virtual environments (no ensurepip)." >&2; \
	      echo "make: install it (Debian, Ubuntu: apt install python3-venv) or install uv, then run make again." >&2; exit 1; }; \
	    rm -rf .venv; $(PYTHON) -m venv .venv; \
	  fi; \
	  $(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.txt; \
	  $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .; \
	fi; \
	touch $@

demo: venv ## one prescription from diagnosis to delivery, traced, verified, then tampered with
	@$(BIN)/erxhub demo

dev: venv ## a seeded hub in one process, to try things on
	@$(BIN)/erxhub dev

test: venv check ## the whole suite in three processes; the tests of a file stay together
	$(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder

check: venv ## style, types, wire contract, generated files
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/buf lint
	$(BIN)/python protos/generate.py --check
	$(BIN)/python docs/generate.py --check
	$(BIN)/python docs/requirements.py --check

protos: venv ## regenerate the code of the .proto files
	$(BIN)/python protos/generate.py

docs: venv ## regenerate the generated documents
	$(BIN)/python docs/generate.py
	$(BIN)/python docs/requirements.py

compiled: $(COMPILED) ## the hot modules compiled, in build/compiled (docs/decisions/0014; needs a C compiler)

# Into a folder of its own and never beside the sources, where it would stand in for a .py file that was edited since.
# (Not the three folders themselves: `protos` is also a word of this file, and would make this anew each time.)
$(COMPILED): $(STAMP) $(shell find hub clients protos -mindepth 1 -type d -not -name __pycache__ -o -type f -not -name '*.pyc')
	@rm -rf build/compiled; mkdir -p build/compiled
	@echo "compiling the hub's hot modules: some two minutes" >&2
	@HATCH_BUILD_HOOKS_ENABLE=1 $(BIN)/python -m hatchling build -t wheel -d build/compiled >build/compiled/log 2>&1 || \
	  { tail -30 build/compiled/log >&2; exit 1; }
	@$(BIN)/python -m zipfile -e build/compiled/*.whl $(SITE)
	@touch $@

test-compiled: compiled ## the suite on the compiled modules, but for the tests that change the hub's code
	PYTHONPATH="$(CURDIR)/$(SITE)" $(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder -m "not interpreted"

bench: venv ## measure; prints a table and writes build/bench.json (up to 20 minutes)
	@$(MEASURED) -m tests.bench

bench-large: venv ## the same with 1,000,000 prescriptions in the ledger, beside the rows of `bench` (20 minutes, 10 GB)
	@$(MEASURED) -m tests.bench --large

campaign: venv test-compiled ## races and crashes with the large numbers, every mutant, and the suite on the compiled hub
	$(BIN)/python -m pytest --campaign -m campaign
	$(BIN)/python -m tests.mutants --all

lock: ## resolve requirements.txt anew from pyproject.toml (needs uv)
	uv pip compile pyproject.toml --quiet --upgrade --extra dev --universal --python-version 3.11 --generate-hashes \
	  --no-emit-index-url --no-emit-find-links --custom-compile-command 'make lock' -o requirements.txt

clean: ## remove caches and build products; .venv stays
	rm -rf build dist .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find hub clients protos tests docs -name __pycache__ -type d -prune -exec rm -rf {} +
