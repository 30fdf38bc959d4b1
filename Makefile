# make demo: the whole job on generated data.   make test: the quick tests.
# make test-all: every test there is.
# make docs: the guide, docs/_build/html/index.html; INTERSPHINX=1 links it to
# those of JAX, Flax, Optax and NumPy.
# make weights: a small pretrained encoder, which some tests and figures need.
# Each makes a virtual environment of its own and installs what it needs.
PYTHON ?= python3
VENV ?= .venv$(if $(filter-out python3,$(PYTHON)),-$(notdir $(PYTHON)))
BIN := $(VENV)/bin
INSTALLED := $(VENV)/installed
INSTALLED_DOCS := $(VENV)/installed-docs
INSTALLED_TEST := $(VENV)/installed-test

.PHONY: demo test test-slow test-all docs weights lint format clean
PYTEST = $(BIN)/python -m pytest --dist worksteal

$(INSTALLED): pyproject.toml
	@echo "Installing xlj and what it needs into $(VENV) (about a minute)"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable .
	@touch $@

$(INSTALLED_DOCS): $(INSTALLED)
	@echo "Installing what the guide needs into $(VENV)"
	$(BIN)/python -m pip install --quiet --editable '.[docs]'
	@touch $@

$(INSTALLED_TEST): $(INSTALLED)
	@echo "Installing what the tests need into $(VENV)"
	$(BIN)/python -m pip install --quiet --editable '.[test]'
	@touch $@

demo: $(INSTALLED)
	$(BIN)/python launch/demo.py

test: $(INSTALLED_TEST)
	$(PYTEST) -n 2 tests

# One more than there are cores where CI runs: some wait for processes that hang.
test-slow: $(INSTALLED_TEST)
	$(PYTEST) -n 3 -m slow tests

test-all: test test-slow

docs: $(INSTALLED_DOCS)
	$(BIN)/python -m sphinx --quiet --fail-on-warning --fresh-env docs docs/_build/html
	@echo "The guide is docs/_build/html/index.html"

weights: $(INSTALLED)
	$(BIN)/python -m benchmarks.weights

lint: $(INSTALLED_TEST)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyrefly check

format: $(INSTALLED_TEST)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf .venv .venv-* .pytest_cache .ruff_cache demo_run docs/_build
