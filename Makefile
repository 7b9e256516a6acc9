# Two commands on a fresh machine: `make demo` and `make test`.
# Both make a virtual environment in .venv and install the library into it.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test lint docs docs-serve clean

demo: .venv/installed
	$(BIN)/python examples/imp_cifar.py --output_dir=runs/demo

test: .venv/installed
	$(BIN)/python -m pytest --numprocesses=2 --dist=loadfile \
		--no-loadscope-reorder

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: .venv/documented
	$(BIN)/python -m sphinx -W --keep-going --quiet -b html \
		-d build/docs/doctrees docs site

docs-serve: docs
	$(BIN)/python -m http.server --directory site --bind localhost

.venv/documented: .venv/installed
	$(BIN)/python -m pip install --quiet --editable '.[tests,docs]'
	touch $@

.venv/installed: setup.py
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --no-compile --editable '.[tests]'
	touch $@

clean:
	rm -rf .venv build docs/reference runs site
