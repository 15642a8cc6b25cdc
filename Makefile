# The project's commands. `make help` lists them. Everything is made inside this folder.
PYTHON ?= python3
BIN := .venv/bin
ITEMS ?= 200000
FILES ?= 8
PORT ?= 3000
SIZE ?= 800000
SEEDS ?= 20
# Files of tests that run side by side. Each may have a Dagster of its own: more than cores make them late.
WORKERS ?= 2

.DEFAULT_GOAL := help
.PHONY: help setup demo dev test pythons docs check bench chaos clean

help: ## list these commands
	@awk -F':.*## ' '/^[a-z]+:.*## /{printf "  make %-8s %s\n", $$1, $$2}' Makefile

# Each stamp is newer than what it was made from, so a second call does nothing.
.venv/.demo: pyproject.toml constraints.txt
	@test -x $(BIN)/pip || $(PYTHON) -m venv .venv
	@echo "installing into .venv (about a minute the first time)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[demo]'
	@touch $@

.venv/.test: .venv/.demo
	@echo "installing what the tests and checks need"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test]'
	@touch $@

.venv/.bench: .venv/.test
	@echo "installing the other contenders of the benchmarks"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[bench]'
	@touch $@

.venv/.docs: .venv/.demo
	@echo "installing what writes the documentation"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[docs]'
	@touch $@

setup: .venv/.demo ## install into .venv (quick when nothing changed)

demo: .venv/.demo ## sample export -> embedded PostgreSQL through Dagster (ITEMS=200000 FILES=8)
	@$(BIN)/migration-pipeline demo --items $(ITEMS) --files $(FILES)

dev: .venv/.demo ## the same stack with the Dagster UI at http://127.0.0.1:3000 (PORT=3000), until Ctrl-C
	@exec $(BIN)/migration-pipeline dev --port $(PORT)

test: .venv/.test ## the whole test suite, against real components (WORKERS=2 files of tests side by side)
	@$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder

pythons: .venv/.test ## the unit tests on each other Python, of 3.10 to 3.14, that is here
	@.ci/pythons

check: .venv/.test ## format, lint, types, layers and dependencies
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports
	@$(BIN)/deptry migration_pipeline

docs: .venv/.docs ## the documentation as a site, in build/site
	@$(BIN)/python docs/site/pages.py build
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet -f build/mkdocs.yml
	@echo "written: build/site/index.html"

bench: .venv/.bench ## the benchmarks: prints tables, writes build/bench.json (SIZE=800000 items a workload)
	@$(BIN)/python -m benchmarks.bench --items $(SIZE)

chaos: .venv/.test ## inject every fault SEEDS times, print what became of the loads (SEEDS=20, about an hour)
	@$(BIN)/python -m migration_pipeline_tests.chaos.sweep --seeds $(SEEDS)

clean: ## remove what the other commands made
	@if [ -x $(BIN)/migration-pipeline ]; then $(BIN)/migration-pipeline clean; fi
	@rm -rf .venv .local build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
