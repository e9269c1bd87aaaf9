# Everything runs inside .venv, which the first target makes; nothing else is installed.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DEMO_ARGS ?=
SERVE_ARGS ?=
TEST_ARGS ?=
TEST_WORKERS ?= auto
BENCH_ARGS ?=
SOAK_ARGS ?=
FUZZ_EXAMPLES ?= 20000
FUZZ_TARGETS := tests/product/test_faithful.py tests/serving/test_differential.py tests/serving/test_fuzz.py \
	tests/upstream/transport/test_fuzz.py

.PHONY: demo serve test test-lowest lint format fuzz soak bench clean

demo: $(VENV)/.runtime
	$(BIN)/aisbreaker demo $(DEMO_ARGS)

serve: $(VENV)/.runtime
	$(BIN)/aisbreaker serve $(SERVE_ARGS)

# A worker for each core. A file stays with one, which starts its servers once; a test that hangs ends the run, and is not tried
# again. TEST_WORKERS=0 runs everything in one process.
test: $(VENV)/.dev
	$(BIN)/python -m pytest -n $(TEST_WORKERS) --maxprocesses 8 --dist loadfile --max-worker-restart 0 $(TEST_ARGS)

# The same with the lowest versions of the dependencies instead of the newest, in an environment of its own.
test-lowest:
	PYTHON=$(PYTHON) TEST_WORKERS=$(TEST_WORKERS) .ci/versions $(TEST_ARGS)

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The fuzz targets of the tests, for longer than the tests have time.
fuzz: $(VENV)/.dev
	FUZZ_EXAMPLES=$(FUZZ_EXAMPLES) $(BIN)/python -m pytest -q $(FUZZ_TARGETS)

# 30 minutes of random faults, which a well-behaved client must not notice and memory must outlive. SOAK_ARGS="--minutes 2" is for
# a look.
soak: $(VENV)/.dev
	$(BIN)/python benchmarks/soak.py $(SOAK_ARGS)

# The data path beside its peers, then the quotas beside their library's own. Needs nginx, wrk, cc and npm. BENCH_ARGS=--quick
# is for a look.
bench: $(VENV)/.dev
	$(BIN)/python benchmarks/datapath.py $(BENCH_ARGS)
	$(BIN)/python benchmarks/quotas.py

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.runtime: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install -q -e .
	@touch $@

$(VENV)/.dev: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install -q -e '.[dev]'
	@touch $@ $(VENV)/.runtime
