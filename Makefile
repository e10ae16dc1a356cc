# Two commands for newcomers: `make demo` and `make test`. Both do their own set-up.
STEPS ?= 20
CONFIG ?= quickstart
ROUNDS ?= 1
SEED ?= $(shell date +%s)

# A user's shell does not set it, and the tests must see what the roles do by themselves.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test test-all test-slow chaos check setup lock clean

demo: setup
	@echo "preparing SmolLM2-135M (once)"; .venv/bin/python -m runtime.models smollm2-135m >/dev/null
	@.venv/bin/zerotir up $(CONFIG) --set learner.steps=$(STEPS)

test: setup check
	@.venv/bin/python -m pytest -m "not slow" -n 2 --dist loadscope

# What `make test` leaves out: chaos, ranks, floods, whatever takes long or needs chance or a clock to mean something.
test-slow: setup
	@.venv/bin/python -m pytest -m slow

test-all: setup check
	@.venv/bin/python -m pytest

chaos: setup
	@.venv/bin/python -m tests.chaos.rounds --rounds $(ROUNDS) --seed $(SEED)

check: setup
	@.venv/bin/ruff check .
	@.venv/bin/ruff format --check .
	@.venv/bin/mypy

setup:
	@scripts/setup

lock:
	@scripts/lock

clean:
	rm -rf .venv .tools .mypy_cache .ruff_cache .pytest_cache *.egg-info
