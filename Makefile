# Each target creates .venv and installs what it needs; PYTHON picks the interpreter (3.11 to 3.13).
PYTHON ?= python3
BIN := .venv/bin

.PHONY: train test docs lanes lane-numpy1 lane-numpy2 lane-torch lane-nvrtc check bench gpu-check clean
.DELETE_ON_ERROR:

train: .venv/train  ## train LeNet on Fashion-MNIST; ARGS="--norm none --epochs 5" passes options on
	$(BIN)/polybn train $(ARGS)

test: .venv/test  ## run the tests, on two processes of one BLAS thread each
	OPENBLAS_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 $(ARGS)

# JAX and MXNet are tested on both sides of NumPy 2: as pip resolves them together, and as they run on the newest NumPy.
# JAX compiles for every shape: each lane runs its own tests, and that of the newest JAX the contract's shorter ones and
# the kit, too. What trains for minutes, or on several devices, runs in one lane of the two. `ARGS` may name more.
LANE = OPENBLAS_NUM_THREADS=1 POLYBN_REQUIRE=jax,mxnet .venv-$(1)/bin/python -m pytest -n 2 --hypothesis-seed=0
JAX_TESTS = tests/test_jax_*.py tests/test_protocol.py
NEWEST_JAX_TESTS = tests/test_bench.py tests/test_program.py tests/test_degenerate.py tests/test_pages.py tests/test_shell_blocks.py \
    tests/test_docstrings.py tests/test_conformance.py

lanes: lane-numpy1 lane-numpy2  ## run the tests of JAX and MXNet, in an environment for each major version of NumPy

lane-numpy1: .venv-numpy1/test
	$(call LANE,numpy1) -k mxnet
	$(call LANE,numpy1) -k "jax and not several_devices" $(JAX_TESTS) $(ARGS)

lane-numpy2: .venv-numpy2/test
	$(call LANE,numpy2) -k "mxnet and not ten_epochs"
	$(call LANE,numpy2) -k jax $(JAX_TESTS) $(NEWEST_JAX_TESTS) $(ARGS)

lane-nvrtc: .venv/nvrtc  ## compile all CUDA kernels for three architectures, which needs no GPU
	POLYBN_REQUIRE_TOOLS=nvrtc,nvdisasm $(BIN)/python -m pytest -n 2 tests/test_cupy_nvrtc.py tests/test_cupy_budget.py $(ARGS)

docs: .venv/docs  ## build the documentation into docs/_build/html; whatever does not resolve is an error
	rm -rf docs/_build
	$(BIN)/python -m sphinx --fail-on-warning --keep-going --nitpicky --quiet docs docs/_build/html

lane-torch: .venv-torch/test  ## install the example of a third party's backend, hold it to the kit, and run pages on PyTorch
	OPENBLAS_NUM_THREADS=1 .venv-torch/bin/python -m pytest -n 2 tests/test_example_backend.py tests/test_conformance_page.py tests/test_pages.py \
	    tests/test_shell_blocks.py $(ARGS)

check: .venv/check  ## lint and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: .venv/train  ## time batch norm and training steps of each backend that runs here
	$(BIN)/polybn bench $(ARGS)

gpu-check:  ## on a machine with a GPU and its own CuPy: kit, tests, sanitizers, timings, docs/results/cupy-<device>.json
	PYTHONPATH=.:backends $(PYTHON) -m tests.gpu.check $(ARGS)

clean:  ## remove what the other targets made, runs excepted
	rm -rf .venv .venv-numpy1 .venv-numpy2 .venv-torch build dist docs/_build *.egg-info

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

.venv/nvrtc: pyproject.toml .venv/test
	$(BIN)/python -m pip install --quiet --group nvrtc
	touch $@

.venv/check: pyproject.toml | .venv/pip
	$(BIN)/python -m pip install --quiet --editable ".[plot]" --group check
	touch $@ .venv/train .venv/test

.venv/docs: pyproject.toml | .venv/pip
	$(BIN)/python -m pip install --quiet --editable ".[plot,conformance]" --group docs
	touch $@ .venv/train

.venv-torch/test: pyproject.toml docs/examples/polybn_torch/pyproject.toml
	$(PYTHON) -m venv .venv-torch
	.venv-torch/bin/python -m pip install --quiet --upgrade "pip>=25.1"
	.venv-torch/bin/python -m pip install --quiet --editable ".[plot]" --group test ./docs/examples/polybn_torch
	touch $@

.venv-numpy1/test: pyproject.toml
	$(PYTHON) -m venv .venv-numpy1
	.venv-numpy1/bin/python -m pip install --quiet --upgrade "pip>=25.1"
	.venv-numpy1/bin/python -m pip install --quiet --editable ".[plot,flax,mxnet]" --group test
	touch $@

# MXNet's metadata asks for NumPy 1, hence --no-deps. docs/leaving-mxnet.md leads to PyTorch, Keras and ONNX.
.venv-numpy2/test: pyproject.toml
	$(PYTHON) -m venv .venv-numpy2
	.venv-numpy2/bin/python -m pip install --quiet --upgrade "pip>=25.1"
	.venv-numpy2/bin/python -m pip install --quiet --editable ".[plot,flax,numba]" --group test "numpy>=2" requests graphviz torch==2.13.0 keras onnx
	.venv-numpy2/bin/python -m pip install --quiet --no-deps mxnet==1.9.1
	touch $@
