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

.PHONY: demo test test-no-torch test-oldest lint types docs bench clean

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
docs: $(VENV)/.docs-installed
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

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

$(VENV)/.docs-installed: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --editable ".[docs]"
	@touch $@

# Not compiled: most of it is never imported, and compiling takes longer than the rest of the installation.
$(VENV)/.no-torch-installed: pyproject.toml .ci/without_torch.py | $(VENV)/bin/python
	$(BIN)/python .ci/without_torch.py > $(VENV)/requirements.txt
	$(BIN)/python -m pip install --quiet --no-compile --requirement $(VENV)/requirements.txt
	$(BIN)/python -m pip install --quiet --no-deps --editable .
	@touch $@

$(VENV)/.oldest-installed: pyproject.toml .ci/oldest.py | $(VENV)/bin/python
	$(BIN)/python .ci/oldest.py > $(VENV)/oldest.txt
	$(BIN)/python -m pip install --quiet --no-compile --requirement $(VENV)/oldest.txt \
	    pytest pytest-xdist hypothesis webdataset
	$(BIN)/python -m pip install --quiet --no-deps --editable .
	@touch $@

clean:
	rm -rf build dist site .cache *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
