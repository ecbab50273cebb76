# Two commands do everything on a machine with Python 3.11+ and make: `make demo`, `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
ARGS ?=
KILLS ?= 200
WORKERS ?= 2
PYTHONS ?=

.PHONY: demo test test-exact test-web test-wheel lint bench page docs records clean chromium

# pip takes torch first and alone: a later requirement must not bring another build of it.
$(STAMP): pyproject.toml constraints.txt hatch_build.py
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $(STAMP)

.venv: $(STAMP)

page: $(STAMP)
	$(BIN)/python hatch_build.py

demo: $(STAMP) page
	$(BIN)/python -m otf_lightning.demo $(ARGS)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy src/otf_core src/otf_lightning
	$(BIN)/lint-imports --no-cache

# The browser tests need Chromium; where it cannot be had they say so and the rest runs.
chromium:
	@command -v chromium >/dev/null 2>&1 || \
	{ command -v apt-get >/dev/null 2>&1 && apt-get update -qq && apt-get install -y -qq chromium; } \
	>/dev/null 2>&1 || echo "no Chromium: the browser tests will be left out" >&2

test: $(STAMP) page chromium lint
	$(BIN)/python -m pytest --numprocesses $(WORKERS) --dist worksteal

# Everything that is promised of the exact state; `make test` runs a slice of it.
test-exact: $(STAMP)
	$(BIN)/python -m tests.exact --kills $(KILLS) $(ARGS)
	$(BIN)/python -m tests.script.exact
	$(BIN)/python -m pytest -m long --numprocesses $(WORKERS) --dist worksteal

# The page in full, in a browser; `make test` runs a slice of it.
test-web: $(STAMP) page chromium
	$(BIN)/python -m pytest tests/page tests/dashboard -m "not long" $(ARGS)

# The wheel in an empty environment: alone, with each extra, and with the Pythons in PYTHONS.
test-wheel: $(STAMP) page
	OTF_PYTHONS="$(PYTHONS)" $(BIN)/python -m pytest -m wheel tests/release $(ARGS)

# The documentation as a site, in build/site; a warning is an error.
docs: $(STAMP)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

# What tests compare with: the public names, and what others have made in the page.
records: $(STAMP) page
	$(BIN)/python -m release.api
	$(BIN)/python -m release.bundled

bench: $(STAMP)
	$(BIN)/python -m benchmarks $(ARGS)

clean:
	rm -rf $(VENV) build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
	rm -rf src/otf_core/dashboard/web/dist src/otf_core/dashboard/web/node_modules
