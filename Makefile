# Two commands on a fresh machine: `make demo` and `make test`.
# Both make a virtual environment in .venv and install the library into it.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test lint clean

demo: .venv/installed
	$(BIN)/python examples/imp_cifar.py --output_dir=runs/demo

test: .venv/installed
	$(BIN)/python -m pytest --numprocesses=2 --dist=loadfile \
		--no-loadscope-reorder

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

.venv/installed: setup.py
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[tests]'
	touch $@

clean:
	rm -rf .venv runs
