# Every target installs what it needs into .venv.
#   make demo    run the whole pipeline once
#   make test    run the fast tests
#   make check   check formatting, lint and types, then run the fast tests
#   make slow    run the slow tests
#   make docs    build the documentation site in site/
#   make bench   print the figures of docs/benchmarks.md
#   make sbom    write sbom.json, the packages of an environment and their licences
#   make hooks   run the fast checks before each commit
#   make clean   remove everything that the other targets create
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
DEMO_OUT ?= demo-out
PYTEST_ARGS ?=
SBOM_PYTHON ?= $(BIN)/python

.PHONY: demo python-with-carla test check slow docs bench sbom hooks clean

demo: python-with-carla $(VENV)/.runtime
	$(BIN)/avtd3 demo --out $(DEMO_OUT)

# The demo drives in the built-in simulator, so look before the packages are downloaded.
python-with-carla:
	@test -x $(BIN)/python || $(PYTHON) -c 'import sys; sys.exit("the demo needs Python 3.11 or 3.12, for which the package carla exists; run make demo PYTHON=/path/to/python3.12") if sys.version_info[:2] not in ((3, 11), (3, 12)) else None'

test: $(VENV)/.dev
	$(BIN)/python -m pytest -m "not slow" -n 2 --dist worksteal $(PYTEST_ARGS)

slow: $(VENV)/.dev
	$(BIN)/python -m pytest -m slow $(PYTEST_ARGS)

check: $(VENV)/.dev .typecheck/avtd3
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/mypy --config-file bench/mypy.ini bench/*.py bench/*/*.py
	$(MAKE) test

# Without the variable, Material for MkDocs prints a notice about its successor.
docs: $(VENV)/.docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet
	@echo "open site/index.html"

bench: $(VENV)/.bench
	$(BIN)/python bench/replay_bench.py
	$(BIN)/python bench/sampling_bench.py
	$(BIN)/python bench/collect_bench.py
	$(BIN)/python bench/store_bench.py
	$(BIN)/python bench/open_bench.py
	$(BIN)/python bench/audit_bench.py
	$(BIN)/python bench/carla_bench.py

# torch is installed first, so that its pin holds for all packages that depend on it.
$(VENV)/.runtime: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("avtd3 needs Python 3.11, 3.12 or 3.13; run make PYTHON=/path/to/python3.12") if not (3, 11) <= sys.version_info[:2] <= (3, 13) else None'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) torch
	$(PIP) -e '.[carla]'
	touch $@

$(VENV)/.dev: $(VENV)/.runtime
	$(PIP) -e '.[dev]'
	touch $@

$(VENV)/.docs: $(VENV)/.runtime
	$(PIP) -e '.[docs]'
	touch $@

$(VENV)/.bench: $(VENV)/.dev
	$(PIP) -e '.[native,bench]'
	touch $@

sbom: $(VENV)/.dev
	$(BIN)/cyclonedx-py environment --pyproject pyproject.toml --output-reproducible --output-file sbom.json $(SBOM_PYTHON)

hooks: $(VENV)/.dev
	$(BIN)/pre-commit install

.typecheck/avtd3:
	mkdir -p .typecheck
	ln -sfn .. $@

clean:
	rm -rf $(VENV) .typecheck .mypy_cache .ruff_cache .pytest_cache .hypothesis build dist site *.egg-info sbom.json $(DEMO_OUT)
