# Every target sets up .venv by itself, with exactly the versions in requirements/*.lock, whatever came out since.
# PYTHON chooses the interpreter for it.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: run test check demo space bench lock test-oldest test-newest
run: .venv/.run
	$(BIN)/tulip-diffusion compare

# One thread a worker: two processes that both spin on two cores are many times slower than one after the other.
PYTEST = OMP_NUM_THREADS=1 $(1)/bin/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile

test: .venv/.dev
	$(call PYTEST,.venv)

check: .venv/.dev
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy tulip_diffusion && $(call PYTEST,.venv)

demo: .venv/.demo
	$(BIN)/tulip-diffusion demo

# A folder that is a Gradio Space as it stands: entry file and metadata, locked requirements, and the package.
space:
	rm -rf outputs/space && mkdir -p outputs/space
	cp demo/space/* outputs/space/
	cp requirements/demo.lock outputs/space/requirements.txt
	cp -RL tulip_diffusion outputs/space/tulip_diffusion
	find outputs/space -name __pycache__ -prune -exec rm -rf {} +

bench: .venv/.dev
	$(BIN)/python -m tests.benchmarks.bench_text_encoder

.venv/bin/python:
	$(PYTHON) -m venv .venv

# The locks hold setuptools as well, so that building the package itself fetches nothing.
define INSTALL
$(BIN)/python -m pip install --require-hashes --requirement requirements/$(1).lock
$(BIN)/python -m pip install --no-deps --no-build-isolation --editable .
endef

.venv/.run: requirements/run.lock pyproject.toml | .venv/bin/python
	$(call INSTALL,run)
	touch $@

.venv/.demo: requirements/demo.lock pyproject.toml | .venv/bin/python
	$(call INSTALL,demo)
	touch $@ .venv/.run

# The demo's tests drive Debian's Chromium, and skip where there is none and none can be installed.
.venv/.dev: requirements/dev.lock pyproject.toml | .venv/bin/python
	$(call INSTALL,dev)
	if [ "$$(id -u)" = 0 ] && command -v apt-get && ! command -v chromium; then \
		apt-get update && apt-get install --yes --no-install-recommends chromium || true; fi
	touch $@ .venv/.demo .venv/.run

# For those who change versions: renew the locks within pyproject.toml's bounds, and test the bounds themselves.
# OLDEST_PYTHON and NEWEST_PYTHON are versions, or paths of interpreters.
UV := $(BIN)/uv
$(UV): | .venv/bin/python
	$(BIN)/python -m pip install uv

COMPILE := $(UV) pip compile pyproject.toml --quiet --universal --python-version 3.11 --generate-hashes --no-annotate \
	--custom-compile-command "make lock"
lock: $(UV)
	$(COMPILE) --upgrade --extra dev --output-file requirements/dev.lock
	$(COMPILE) --upgrade --extra demo --constraints requirements/dev.lock --output-file requirements/demo.lock
	$(COMPILE) --upgrade --constraints requirements/dev.lock --output-file requirements/run.lock

OLDEST_PYTHON ?= 3.11
NEWEST_PYTHON ?= 3.13
test-oldest: $(UV)
	$(UV) venv --seed --clear --python $(OLDEST_PYTHON) .venv-oldest
	$(UV) pip install --python .venv-oldest --resolution lowest-direct --editable ".[dev]"
	$(call PYTEST,.venv-oldest)

test-newest: $(UV)
	$(UV) venv --seed --clear --python $(NEWEST_PYTHON) .venv-newest
	$(UV) pip install --python .venv-newest --upgrade --editable ".[dev]"
	$(call PYTEST,.venv-newest)
