# Everything on a machine with Python >= 3.11:
#   make arith   installs into .venv and runs the main job, its supervised rival first
#   make reproduce   the paper's tables and figures on tiny worlds, one seed, with a report in runs/reproduce/report
#   make test    installs, then lint, types, tests, and one short run from end to end; make unit, make integration: a part
#   make test-reference   on the paper's data and real tokenizers, if they lie in ../shared
#   make test-scale   many devices and processes learn what one does, on every task and by every algorithm; crashes
#   make test-torch   against transformers' own torch models and peft, which it installs beside the rest
#   make pretrain, make benchmark, make test-slow   the tiny base model again, timings, the long tests
#   make torch-peer   a step beside the same step in PyTorch, which it installs beside the rest
#   make docs    the site, in site/, and every cell of the notebook by a few steps; make notebook executes
#                docs/random_number.ipynb again, in place
PYTHON ?= python3
# `make arith LOCK=requirements.txt` takes the newest versions that the ranges allow.
LOCK ?= requirements-lock.txt
BIN := .venv/bin
INSTALLED := .venv/installed
TORCH := .venv/torch
DOCS := .venv/docs
SMOKE := runs/smoke

.PHONY: help arith reproduce test lint types unit integration smoke test-slow test-reference test-scale test-torch \
	pretrain benchmark torch-peer docs notebook clean

help:
	@sed -n 's/^#   //p' Makefile

# Where the C library knows how (glibc), the step's large arrays get large pages: otherwise the system spends a tenth of
# the time on handing out small ones.
arith: export GLIBC_TUNABLES ?= glibc.malloc.hugetlb=1
arith: $(INSTALLED)
	$(BIN)/python -m gfn_jax.launch --config=configs/arith.py:supervised
	$(BIN)/python -m gfn_jax.launch --config=configs/arith.py \
		--config.evaluation.beside="('supervised=runs/arith-supervised',)"

reproduce: $(INSTALLED)
	$(BIN)/python -m gfn_jax.reproduce --what=all --preset=tiny --seeds=0 --workdir=runs/reproduce

test: lint types unit integration smoke docs

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(INSTALLED)
	$(BIN)/mypy

# Whole runs, commands, and every method on every task: `make unit` is the rest. In the order of the files: the one that
# takes longest comes first, not where few tests put it.
WHOLE := tests/runs tests/conformance tests/commands
PYTEST := $(BIN)/pytest -n 2 --dist loadfile --no-loadscope-reorder -m "not slow"

unit: $(INSTALLED)
	$(PYTEST) $(WHOLE:%=--ignore=%)

integration: $(INSTALLED)
	$(PYTEST) $(WHOLE)

# A few steps of the main job, from a workdir that does not exist to its last line.
smoke: $(INSTALLED)
	rm -rf $(SMOKE)
	$(BIN)/gfn train arith:smoke --workdir=$(SMOKE)

# Compiled as users' runs are, not as tests/conftest.py has it.
test-slow: $(INSTALLED)
	XLA_FLAGS= $(BIN)/pytest -m slow

test-reference: $(INSTALLED)
	$(BIN)/pytest -m reference

test-scale: $(INSTALLED)
	$(BIN)/pytest -n 2 -m scale tests/runs
	$(BIN)/pytest -m scale tests/training

test-torch: $(TORCH)
	$(BIN)/pytest -n 2 tests/models/families tests/models/test_adapters.py tests/benchmarks

$(TORCH): $(INSTALLED) requirements-torch.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-torch.txt -c $(LOCK)
	touch $(TORCH)

$(DOCS): $(INSTALLED) requirements-docs.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-docs.txt -c $(LOCK)
	touch $(DOCS)

docs: export NO_MKDOCS_2_WARNING = 1
docs: $(DOCS)
	$(BIN)/mkdocs build --quiet
	$(BIN)/pytest tests/docs/test_notebook.py -m "not slow"

notebook: $(DOCS)
	$(BIN)/jupyter-execute --inplace docs/random_number.ipynb

pretrain: $(INSTALLED)
	$(BIN)/python -m gfn_jax.launch --config=configs/pretrain.py

# On one core where the system can be told so (XLA makes a thread a core), as docs/BENCHMARKS.md says.
benchmark: ONE_CORE := $(if $(shell command -v taskset),taskset -c 0)
benchmark: $(INSTALLED)
	$(ONE_CORE) $(BIN)/python -m gfn_jax.benchmark --config=configs/benchmark.py:a --output=benchmarks/results/step-a
	$(ONE_CORE) $(BIN)/python -m gfn_jax.benchmark --config=configs/benchmark.py:b --output=benchmarks/results/step-b
	$(ONE_CORE) $(BIN)/python -m gfn_jax.benchmark --config=configs/benchmark.py:a --config.samples=5 --config.repeats=2 --growth \
		--output=benchmarks/results/growth

torch-peer: $(TORCH)
	$(BIN)/python benchmarks/torch_peer.py

$(INSTALLED): $(LOCK) requirements.txt pyproject.toml setup.py
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
		echo "error: Python 3.11 or newer is needed and '$(PYTHON)' is not; name one: make PYTHON=python3.11" >&2; \
		exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r $(LOCK)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	touch $(INSTALLED)

clean:
	rm -rf .venv .cache runs/smoke site
