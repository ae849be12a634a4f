# Two commands do everything on a fresh machine with Python 3.11 to 3.13: make compare, make test.
PYTHON ?= python3
BIN := .venv/bin
# Two workers on two cores; one thread each, so that they do not fight.
PYTEST := $(BIN)/python -m pytest -n 2

.PHONY: compare pretrained test test-slow lint clean

compare: .venv/installed  ## The main comparison: table and figures in results/quickstart
	$(BIN)/python experiments/evaluate.py -m experiment=quickstart

pretrained: .venv/installed  ## Train the shipped model again, from nothing, into outputs/pretrained
	$(BIN)/python experiments/train.py -m stage=tokenizer,judge,clip,vae,unet folder=outputs/pretrained

# Compiling is most of what the fast tests do, so LLVM takes it easy there, a third less in all; the
# slow tests run what users run.
test: export XLA_FLAGS ?= --xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false
test: lint  ## Lint and the fast tests
	$(PYTEST) -m "not slow"

test-slow: .venv/test-installed  ## The slow tests
	$(PYTEST) -m slow

lint: .venv/test-installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

.venv/bin/python:
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip

.venv/installed: pyproject.toml constraints.txt | .venv/bin/python
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable .
	touch $@

.venv/test-installed: pyproject.toml constraints.txt | .venv/bin/python
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[test]"
	touch $@ .venv/installed

clean:
	rm -rf .venv .pytest_cache .ruff_cache .hypothesis outputs build *.egg-info
