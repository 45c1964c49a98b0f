# Two commands set up everything on a fresh machine: `make demo` and `make test`. Both install what they need.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV   ?= .venv
BIN    := $(VENV)/bin
SERVE  ?= 0

SHELL       := bash
.SHELLFLAGS := -euo pipefail -c

.PHONY: help install demo docs screenshots test test-jobs test-unit test-page test-faults chaos check format wheel clean

help:
	@echo "make demo           the whole road on two real Landsat scenes (SERVE=1 keeps the service up)"
	@echo "make screenshots    pictures of the search page on the demo's index, for docs/images"
	@echo "make test           lint, types and all tests"
	@echo "make test-jobs      those tests alone that run the verbs on a Ray cluster of three nodes and a real S3 server"
	@echo "make test-unit      the tests that need neither Ray nor a server"
	@echo "make test-page      the search page in Chromium"
	@echo "make test-faults    a few of each fault: workers, drivers and nodes killed, storage and imagery that fail"
	@echo "make chaos          the same faults a hundred times, for hours; may be interrupted and goes on"
	@echo "make check          lint and types"
	@echo "make docs           the documents as a site, in build/site"
	@echo "make format         rewrite the code as the linter wants it"
	@echo "make wheel          build the wheel into dist/"

install: $(VENV)/.installed

# One stamp for all dependencies: made again only when the lists of them change.
$(VENV)/.installed: pyproject.toml constraints.txt
	@echo "installing into $(VENV) (about four minutes the first time)"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade --disable-pip-version-check pip
	$(BIN)/python -m pip install --progress-bar off --constraint constraints.txt --editable '.[dev]' | grep -E --line-buffered '^(Collecting|Installing|Successfully|ERROR)' | cut -c 1-100
	$(BIN)/python -c 'import ray, torch, faiss, rasterio, mlflow'
	@touch $@

demo: install
	$(BIN)/rayjobs demo --folder demo $(if $(filter 1,$(SERVE)),--serve)

test: check test-unit test-page test-jobs

screenshots: install
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.page.screenshots

test-page: install
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/page

test-jobs: install
	$(BIN)/python -m pytest tests/jobs

test-faults: install
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/faults

# Leaves out what has passed already; remove build/chaos/full to begin anew.
chaos: install
	RAYJOBS_CHAOS=full OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/faults

test-unit: install
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist loadfile tests/unit tests/contracts tests/test_architecture.py

check: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# A warning is an error: a link that leads nowhere, a page that is not found. All anew: what is made from the code has no file to be newer.
docs: install
	$(BIN)/python -m sphinx --quiet --fail-on-warning --keep-going --fresh-env -c docs/site -d build/doctrees . build/site
	@echo "build/site/index.html"

wheel: install
	$(BIN)/python -m build --wheel

clean:
	rm -rf build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache
