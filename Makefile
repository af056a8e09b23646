# `make demo` and `make test` install what they need into $(VENV) first.
VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin

.PHONY: demo test lint types bench clean

demo: $(VENV)/.demo-installed
	$(BIN)/distil-cache demo --out demo-out

test: $(VENV)/.dev-installed
	$(BIN)/python -m pytest -q -n 2 --dist loadfile -m "not slow"

lint: $(VENV)/.dev-installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# mypy wants a folder that is named like the package; a checkout seldom is.
types: $(VENV)/.dev-installed
	@folder=$$(mktemp -d) && ln -s "$(CURDIR)" "$$folder/distil_cache" && cd "$$folder" && \
	MYPYPATH="$$folder" "$(abspath $(BIN))/mypy" --config-file distil_cache/pyproject.toml \
	    --cache-dir "$$folder/mypy" -p distil_cache; \
	status=$$?; rm -rf "$$folder"; exit $$status

bench: $(VENV)/.dev-installed
	$(BIN)/python benchmarks/run.py

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.demo-installed: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --editable ".[demo]"
	@touch $@

$(VENV)/.dev-installed: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --editable ".[demo,dev]"
	@touch $@ $(VENV)/.demo-installed

clean:
	rm -rf build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
