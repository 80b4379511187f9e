# Every target sets up .venv by itself where it is missing. PYTHON chooses the interpreter for it.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: run test check demo bench
run: .venv/.run
	$(BIN)/tulip-diffusion compare --overwrite

# One thread a worker: two processes that both spin on two cores are many times slower than one after the other.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile

test: .venv/.dev
	$(PYTEST)

check: .venv/.dev
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy tulip_diffusion && $(PYTEST)

demo: .venv/.demo
	$(BIN)/tulip-diffusion demo

bench: .venv/.dev
	$(BIN)/python -m tests.benchmarks.bench_text_encoder

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/.run: pyproject.toml | .venv/bin/python
	$(BIN)/python -m pip install --editable .
	touch $@

.venv/.demo: pyproject.toml | .venv/bin/python
	$(BIN)/python -m pip install --editable ".[demo]"
	touch $@ .venv/.run

# The demo's tests drive Debian's Chromium, and skip where there is none and none can be installed.
.venv/.dev: pyproject.toml | .venv/bin/python
	$(BIN)/python -m pip install --editable ".[dev]"
	if [ "$$(id -u)" = 0 ] && command -v apt-get && ! command -v chromium; then \
		apt-get update && apt-get install --yes --no-install-recommends chromium || true; fi
	touch $@ .venv/.demo .venv/.run
