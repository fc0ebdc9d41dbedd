PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: demo test bench check clean

demo: .venv/.demo  ## train the gallery of initialisations and compare them
	$(BIN)/lightning-symmetry demo

test: .venv/.test  ## run all tests
	$(BIN)/python -m pytest -q -rs

bench: .venv/.bench  ## measure the cost of a check; under ten minutes
	$(BIN)/python -m tests.benchmarks

check: .venv/.dev  ## lint, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# One virtual environment, and a stamp for each set of extras in it.
.venv/.demo .venv/.test .venv/.bench .venv/.dev: .venv/.%: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(PIP) --editable '.[$*]'
	touch $@

clean:
	rm -rf .venv build dist *.egg-info
