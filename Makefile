# The commands that people run. PYTHON chooses the interpreter of a new virtual environment.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: install example check quick test harness docs stress

install:  ## a virtual environment with everything that the tests need
	$(PYTHON) -m venv .venv
	$(BIN)/pip install -q -e '.[tests]'

example:  ## train and evaluate one row of an ablation table, ten to twenty minutes on two cores
	$(BIN)/python -m experiments.sweep compressor=sap+embq

check:  ## style, types, floors: what a change must pass before it is tested
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .
	$(BIN)/mypy
	$(BIN)/lint-imports

test:  ## the whole suite, about half an hour on two cores
	$(BIN)/python -m pytest -n auto

quick:  ## the tests that take less than ten seconds each
	$(BIN)/python -m pytest -n auto -m "not slow"

harness:  ## what needs lmms-eval, whose eighty packages get an environment of their own
	$(PYTHON) -m venv lmms
	lmms/bin/pip install -q -e '.[lmms-eval]' pytest
	lmms/bin/python -m pytest tests/llm_adapters/test_lmms_eval.py

docs:  ## the documentation site in build/site, its notebooks executed, about two minutes; ablations/site has its pages
	$(BIN)/python -m sphinx -W --keep-going ablations/site build/site

stress: export PYTHONPATH := .:tests/helpers
stress: export OMP_NUM_THREADS := 1
stress:  ## odd input, killed sweeps and damaged files in numbers, an hour or two; tests/stress says what is tried
	$(BIN)/python tests/stress/fuzz.py inputs=10000
	$(BIN)/python tests/stress/corrupt.py rounds=1
	$(BIN)/python tests/stress/kill.py kills=100
