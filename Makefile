# make demo: the whole job on generated data.   make test: the tests.
# Each makes a virtual environment of its own and installs what it needs.
PYTHON ?= python3
VENV ?= .venv$(if $(filter-out python3,$(PYTHON)),-$(notdir $(PYTHON)))
BIN := $(VENV)/bin
INSTALLED := $(VENV)/installed
INSTALLED_TEST := $(VENV)/installed-test

.PHONY: demo test test-slow lint format clean

$(INSTALLED): pyproject.toml
	@echo "Installing xlj and what it needs into $(VENV) (about a minute)"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable .
	@touch $@

$(INSTALLED_TEST): $(INSTALLED)
	@echo "Installing what the tests need into $(VENV)"
	$(BIN)/python -m pip install --quiet --editable '.[test]'
	@touch $@

demo: $(INSTALLED)
	$(BIN)/python launch/demo.py

test: $(INSTALLED_TEST)
	$(BIN)/python -m pytest -n 2 --dist worksteal tests

test-slow: $(INSTALLED_TEST)
	$(BIN)/python -m pytest -m slow tests

lint: $(INSTALLED_TEST)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyrefly check

format: $(INSTALLED_TEST)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf .venv .venv-* .pytest_cache .ruff_cache demo_run
