# Three commands, each sets up what it needs in .venv: `make demo`, `make test`, `make check`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
DEMO_OUT ?= demo-out
PYTEST_ARGS ?=

.PHONY: demo test check slow bench clean

demo: $(VENV)/.runtime
	$(BIN)/avtd3 demo --out $(DEMO_OUT)

test: $(VENV)/.dev
	$(BIN)/python -m pytest -m "not slow" -n 2 --dist worksteal $(PYTEST_ARGS)

slow: $(VENV)/.dev
	$(BIN)/python -m pytest -m slow $(PYTEST_ARGS)

check: $(VENV)/.dev .typecheck/avtd3
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(MAKE) test

bench: $(VENV)/.bench
	$(BIN)/python bench/replay_bench.py
	$(BIN)/python bench/sampling_bench.py
	$(BIN)/python bench/collect_bench.py
	$(BIN)/python bench/store_bench.py
	$(BIN)/python bench/open_bench.py
	$(BIN)/python bench/audit_bench.py
	$(BIN)/python bench/carla_bench.py

# torch is installed first and alone: the pin then holds for whatever asks for it afterwards.
$(VENV)/.runtime: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("avtd3 needs Python 3.11 or newer; run make PYTHON=/path/to/python3.11") if sys.version_info < (3, 11) else None'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) torch
	$(PIP) -e .
	touch $@

$(VENV)/.dev: $(VENV)/.runtime
	$(PIP) -e '.[dev]'
	touch $@

$(VENV)/.bench: $(VENV)/.dev
	$(PIP) -e '.[native,bench]'
	touch $@

.typecheck/avtd3:
	mkdir -p .typecheck
	ln -sfn .. $@

clean:
	rm -rf $(VENV) .typecheck build *.egg-info demo-out
