# `make` lists the targets. Everything runs from .venv, which `make install` fills; only that step uses the network.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip -qq --disable-pip-version-check
OFFLINE := HF_HUB_OFFLINE=1 HF_DATASETS_OFFLINE=1 TOKENIZERS_PARALLELISM=false

.DEFAULT_GOAL := help
.PHONY: help install demo test check fix bench-eval bench-teachers bench-planted bench-student bench-truth soak clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-11s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

install: .venv/.installed ## make .venv and install the checkout with the pinned versions

# torch goes first and alone: where an index offers a CPU build of the pinned version, pip takes it, and nothing below replaces it
.venv/.installed: pyproject.toml constraints.txt
	@echo "installing into .venv (a few minutes the first time)"
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@$(PIP) install --constraint constraints.txt torch==2.13.0
	@$(PIP) install --constraint constraints.txt --editable '.[cpu,train,contributions,openvino,ray,serve,wandb,dev]'
	@touch $@

demo: install ## the whole of influcoder on a small invented world, offline, in minutes
	@$(OFFLINE) $(BIN)/python -m examples.demo

test: check ## linters, types, import arrows, then every test
	$(OFFLINE) $(BIN)/python -m pytest

check: install ## linters, types and import arrows
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

fix: install ## mend what the linters can mend, and format
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

bench-eval: install ## the real run: planted rows in instruction data, an 8M decoder, MiniLM, every floor; 40 minutes
	@$(OFFLINE) $(BIN)/python -m benchmarks.bench_eval

soak: install ## teacher and student killed at 20 random moments, attribution at 50, here and on Ray: every file as if nothing had happened
	SOAK=20 $(OFFLINE) $(BIN)/python -m pytest tests/teacher/test_kill.py tests/student/test_kill.py
	SOAK=50 $(OFFLINE) $(BIN)/python -m pytest tests/influcoder/test_attribution_kill.py tests/influcoder/test_ray_kill.py

bench-teachers: install ## every gradient method beside the floors on planted rows; 30 minutes
	@$(OFFLINE) $(BIN)/python -m benchmarks.bench_teachers

bench-planted: install ## does the student find planted rows as well as the best teacher; 20 minutes
	@$(OFFLINE) $(BIN)/python -m benchmarks.bench_planted

bench-student: install ## students beside their ceilings and floors on rows they have not seen, judged on exact gradients; 40 minutes
	@$(OFFLINE) $(BIN)/python -m benchmarks.bench_student

bench-truth: install ## do scores predict what retraining does: removal, halves, single steps; 2 hours
	@$(OFFLINE) $(BIN)/python -m benchmarks.bench_truth

clean: ## remove caches and builds; runs/ and .venv stay
	rm -rf build dist *.egg-info .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -not -path './.venv/*' -prune -exec rm -rf {} +
