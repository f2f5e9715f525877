# Each target creates .venv and installs what it needs; PYTHON picks the interpreter (3.11 to 3.13).
PYTHON ?= python3
BIN := .venv/bin

.PHONY: train test check bench clean
.DELETE_ON_ERROR:

train: .venv/train  ## train LeNet on Fashion-MNIST; ARGS="--norm none --epochs 5" passes options on
	$(BIN)/polybn train $(ARGS)

test: .venv/test  ## run the tests, on two processes of one BLAS thread each
	OPENBLAS_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 $(ARGS)

check: .venv/check  ## lint and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: .venv/train  ## time batch norm and training steps of each backend that runs here
	$(BIN)/polybn bench $(ARGS)

clean:  ## remove what the other targets made, runs excepted
	rm -rf .venv build dist *.egg-info

.venv/pip: 
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade "pip>=25.1"
	touch $@

.venv/train: pyproject.toml | .venv/pip
	$(BIN)/python -m pip install --quiet --editable ".[plot]"
	touch $@

.venv/test: pyproject.toml | .venv/pip
	$(BIN)/python -m pip install --quiet --editable ".[plot]" --group test
	touch $@ .venv/train

.venv/check: pyproject.toml | .venv/pip
	$(BIN)/python -m pip install --quiet --editable ".[plot]" --group check
	touch $@ .venv/train .venv/test
