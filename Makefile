# Every target sets up .venv by itself where it is missing. PYTHON chooses the interpreter for it.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: run test check bench
run: .venv/.run
	$(BIN)/tulip-diffusion describe --file docs/sample_prompt.txt --encoder untrained

test: .venv/.dev
	$(BIN)/python -m pytest

check: .venv/.dev
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy tulip_diffusion && $(BIN)/python -m pytest

bench: .venv/.dev
	$(BIN)/python -m tests.benchmarks.bench_text_encoder

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/.run: pyproject.toml | .venv/bin/python
	$(BIN)/python -m pip install --editable .
	touch $@

.venv/.dev: pyproject.toml | .venv/bin/python
	$(BIN)/python -m pip install --editable ".[dev]"
	touch $@ .venv/.run
