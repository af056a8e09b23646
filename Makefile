# `make demo` and `make test` install what they need into $(VENV) first.
ifeq ($(MAKECMDGOALS),test-no-torch)
VENV ?= .venv-no-torch
endif
ifeq ($(MAKECMDGOALS),test-oldest)
VENV ?= .venv-oldest
endif
VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin

.PHONY: demo test test-no-torch test-oldest lint types docs coverage bench dist lock clean

demo: $(VENV)/.demo-installed
	$(BIN)/distil-cache demo --out demo-out

test: $(VENV)/.dev-installed
	$(BIN)/python -m pytest -q -n 2 --dist loadfile -m "not slow"

# The tests that need no torch, where it is not installed: quickly, with another Python (PYTHON=python3.13 VENV=.venv313).
test-no-torch: $(VENV)/.no-torch-installed
	$(BIN)/python -m pytest -q -n 2 --dist loadfile -m "not slow" $(TESTS)

# With the oldest versions that pyproject.toml allows, on the oldest Python: about 6 GB. Tests of object stores skip.
test-oldest: $(VENV)/.oldest-installed
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

# The site, into site/. Strict: a page that the navigation lacks, or a link that leads nowhere, is an error.
docs: $(VENV)/.dev-installed
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# The figure that the README gives is the total in the last line; coverage.json has it by file.
coverage: $(VENV)/.dev-installed
	$(BIN)/python -m pytest -q -n 2 --dist loadfile -m "not slow" --cov --cov-report=term --cov-report=json

bench: $(VENV)/.dev-installed
	$(BIN)/python benchmarks/run.py

# What a release consists of, into dist/, checked as the package index checks it.
dist: $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet build twine
	rm -rf dist
	$(BIN)/python -m build .
	$(BIN)/python -m twine check --strict dist/*

# Choose the newest versions of everything that CI installs, for all Pythons and systems that it runs on.
lock: $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet uv
	$(BIN)/python -m uv pip compile pyproject.toml --all-extras --universal --python-version 3.11 --no-annotate --quiet --upgrade \
	    --constraint .ci/pins.txt --custom-compile-command "make lock" --output-file .ci/constraints.txt

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.demo-installed: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --editable ".[demo]"
	@touch $@

$(VENV)/.dev-installed: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --editable ".[demo,dev]"
	@touch $@ $(VENV)/.demo-installed

# Not compiled: most of it is never imported, and compiling takes longer than the rest of the installation.
$(VENV)/.no-torch-installed: pyproject.toml .ci/without_torch.py | $(VENV)/bin/python
	$(BIN)/python .ci/without_torch.py > $(VENV)/requirements.txt
	$(BIN)/python -m pip install --quiet --no-compile --requirement $(VENV)/requirements.txt
	$(BIN)/python -m pip install --quiet --no-deps --editable .
	@touch $@

$(VENV)/.oldest-installed: pyproject.toml .ci/oldest.py | $(VENV)/bin/python
	$(BIN)/python .ci/oldest.py > $(VENV)/oldest.txt
	$(BIN)/python -m pip install --quiet --no-compile --requirement $(VENV)/oldest.txt \
	    pytest pytest-xdist hypothesis webdataset timm diffusers
	$(BIN)/python -m pip install --quiet --no-deps --editable .
	@touch $@

clean:
	rm -rf build dist site .cache .coverage coverage.json *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
