# `make help` lists the targets. uv manages the environment from requirements.lock; it is
# fetched into .tools/ when the machine has none.

SHELL := /bin/bash
.DEFAULT_GOAL := help

PYTHON ?= python3
UV := $(shell command -v uv 2>/dev/null || echo .tools/uv/bin/uv)
BIN := .venv/bin
INSTALLED := .venv/.installed

export UV_PYTHON_DOWNLOADS := never
# Set in many images. Every process would compile the thousands of files it imports anew.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help demo test check test-slow test-faults bench serve worker dashboard migrate \
        format lint types imports lock setup browser postgres openfeature promtool \
        faketime clean

help: ## show this text
	@awk 'BEGIN {FS = ":.*## "} /^[a-z-]+:.*## / {printf "  %-11s %s\n", $$1, $$2}' \
		$(MAKEFILE_LIST)

.tools/uv/bin/uv:
	$(PYTHON) -m venv .tools/uv
	.tools/uv/bin/pip install --quiet uv

$(INSTALLED): requirements.lock pyproject.toml | $(filter .tools/%,$(UV))
	$(UV) venv --quiet --allow-existing --python $(PYTHON) .venv
	$(UV) pip sync --quiet requirements.lock
	$(UV) pip install --quiet --no-deps --editable .
	@touch $@

setup: $(INSTALLED) ## install what everything else needs into .venv

demo: $(INSTALLED) ## run everything on real retail data, with shoppers; Ctrl-C stops it
	@$(BIN)/experiment-service demo

# Tests that start processes wait for them: one more at a time than there are cores, file
# by file, the longest first. Beside them what runs SQL of its own, once more: the second
# server has to give the same.
WAITING := $(shell echo $$(($$(getconf _NPROCESSORS_ONLN) + 1)))
PROCESSES := tests/acceptance tests/integration/serving \
	$(addprefix tests/integration/test_,mirroring.py embedded.py worker.py ingestion.py)
ALONE := $(addprefix --ignore=,$(PROCESSES))
DATABASE := $(filter-out $(PROCESSES) $(addprefix tests/integration/test_,cli.py release.py \
	replay.py scheduled_releases.py training.py),$(wildcard tests/integration/test_*.py)) \
	tests/integration/reporting/test_reporting.py \
	tests/integration/reporting/test_adjusted.py

test: $(INSTALLED) browser postgres openfeature promtool ## run all tests but the slow ones, on two PostgreSQL servers
	$(BIN)/python -m pytest -n auto $(ALONE)
	$(BIN)/python -m pytest -n $(WAITING) --dist loadfile --no-loadscope-reorder \
		$(PROCESSES) $(DATABASE) --server debian

check: $(INSTALLED) lint types imports test ## all that CI runs: format, lint, types, imports, tests

test-slow: $(INSTALLED) ## calibration of the statistics by simulation
	$(BIN)/python -m pytest -m slow -s tests/statistical

test-faults: $(INSTALLED) postgres faketime ## kill, stop, fill and slow down what the service runs on
	$(BIN)/python -m pytest -m faults -v -s tests/faults

bench: $(INSTALLED) ## speed beside a floor measured in the same run
	$(BIN)/python tests/benchmarks/bench_http.py
	$(BIN)/python tests/benchmarks/bench_journal.py
	$(BIN)/python tests/benchmarks/bench_serving.py
	$(BIN)/python tests/benchmarks/bench_ingestion.py
	$(BIN)/python tests/benchmarks/bench_probability.py
	$(BIN)/python tests/benchmarks/bench_pages.py
	$(BIN)/python tests/benchmarks/bench_replay.py
	$(BIN)/python tests/benchmarks/bench_report.py --units 200000
	$(BIN)/python tests/benchmarks/bench_training.py
	$(BIN)/python tests/benchmarks/bench_lists.py --units 200000

serve: $(INSTALLED) ## run the API
	@$(BIN)/experiment-service serve

worker: $(INSTALLED) ## run the scheduled jobs
	@$(BIN)/experiment-service worker

dashboard: $(INSTALLED) ## run the dashboard
	@$(BIN)/experiment-service dashboard

migrate: $(INSTALLED) ## bring the database schema up to date
	@$(BIN)/experiment-service migrate

format: $(INSTALLED) ## format the code
	$(BIN)/ruff format
	$(BIN)/ruff check --fix

lint: $(INSTALLED)
	$(BIN)/ruff format --check
	$(BIN)/ruff check

types: $(INSTALLED)
	$(BIN)/mypy

imports: $(INSTALLED)
	$(BIN)/lint-imports

lock: | $(filter .tools/%,$(UV)) ## choose versions anew within the bounds of pyproject.toml
	$(UV) pip compile pyproject.toml --quiet --upgrade --universal --python-version 3.11 \
		--generate-hashes --no-emit-index-url --no-annotate --no-header \
		--group demo --group dev --output-file requirements.lock

# Tests drive the dashboard in a real browser and run on a second PostgreSQL; both come
# from Debian. Elsewhere, install chromium and postgresql by hand.
browser:
	@command -v chromium >/dev/null || bash tests/apt-install chromium

postgres:
	@ls /usr/lib/postgresql/*/bin/initdb >/dev/null 2>&1 || bash tests/apt-install postgresql

# Checks metrics and alert rules; the other checks systemd's units.
promtool:
	@command -v promtool >/dev/null || bash tests/apt-install prometheus
	@command -v systemd-analyze >/dev/null || bash tests/apt-install systemd

# A clock that jumps, for some processes only.
faketime:
	@ls /usr/lib/*/faketime/libfaketimeMT.so.1 >/dev/null 2>&1 || \
		bash tests/apt-install libfaketime

# The official clients of OpenFeature in JavaScript; versions are in the lock file there.
openfeature: tests/openfeature/node_modules/.package-lock.json

tests/openfeature/node_modules/.package-lock.json: tests/openfeature/package-lock.json
	@command -v npm >/dev/null || bash tests/apt-install nodejs npm
	npm ci --prefix tests/openfeature --no-audit --no-fund --silent
	@touch $@

clean: ## remove the environment and the demo's data
	rm -rf .venv .tools .experiment-service
