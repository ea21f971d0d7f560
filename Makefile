# `make demo` and `make test` each work alone on a fresh machine with Python 3.11 or newer.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
.PHONY: install demo test test-slow bench bench-quick docs lint format clean

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $@

# the answer, on generated images, in a few minutes
demo: install
	bash scripts/demo.sh $(BIN)/medtransfer

# one thread for each of two processes: more threads than cores are many times slower
test: install
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 -m 'not slow' --cov --cov-report=term

# what takes minutes: longer training, larger studies
test-slow: install
	$(BIN)/python -m pytest -m slow

# ratios against bare loops and other programs: all in an hour or so, or what changed in 3 minutes
bench: install
	$(BIN)/python scripts/bench

bench-quick: install
	$(BIN)/python scripts/bench --quick

# the documentation, into docs/_build/html
docs: install
	$(BIN)/python -m sphinx -W --keep-going -q -b html docs docs/_build/html

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) build dist
