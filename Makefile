# Everything a clone needs is made by these targets; `make help` lists them.
PYTHON ?= python3
BIN := .venv/bin
PACKAGE := $(BIN)/python -m nexttouch

.PHONY: help demo test soak lint bench lab clean

SOAK ?= 1h

help: ## list the targets
	@sed -n 's/^\([a-z]*\):.*## /  make \1\t/p' $(MAKEFILE_LIST)

.venv/ready: pyproject.toml requirements.lock CMakeLists.txt $(wildcard src/nexttouch/_*/*.[ch])
	@scripts/setup-venv.sh $(PYTHON)

demo: .venv/ready ## move the memory of a real program lazily between NUMA nodes, and show it
	@$(PACKAGE) demo

test: .venv/ready ## run every test, those that need four nodes in a virtual machine
	@scripts/test $(TEST_FLAGS)

soak: .venv/ready ## run what finds rare failures for hours, with new seeds: SOAK=8h
	@cd tests && ../$(BIN)/python -m soak $(SOAK)

lint: .venv/ready ## ruff, mypy and the C compiler's warnings
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

bench: .venv/ready ## measure, print and save the figures of docs/performance.md
	@$(BIN)/python -m bench

lab: .venv/ready ## set up the virtual NUMA machine and show its nodes
	@$(PACKAGE) lab --setup
	@$(PACKAGE) lab -- $(CURDIR)/$(PACKAGE) topology

clean: ## remove what the targets made in this directory
	rm -rf .venv build dist .mypy_cache .pytest_cache .ruff_cache bench/results
