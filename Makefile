# Each target creates .venv and installs what it needs; PYTHON picks the interpreter (3.11 or later).
PYTHON ?= python3
BIN := .venv/bin

.PHONY: help train test lanes lane-kit lane-sabotage lane-plain lane-xla lane-older lane-torch lane-dask lane-cuda lane-pythons check docs dist bench gpu-check clean
.DELETE_ON_ERROR:

help:  ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 16

train: .venv/train  ## train LeNet on Fashion-MNIST; ARGS="--norm none --epochs 5" passes options on
	$(BIN)/polybn train $(ARGS)

# Two processes, each of which may use one thread of BLAS: OpenBLAS's threads wait by spinning.
# A process takes half of the tests as they stand, so that those of one module share what was compiled, and later the other's rest.
PYTEST = OPENBLAS_NUM_THREADS=1 $(1)/bin/python -m pytest -n 2 --dist worksteal

# What the kit says about right and wrong batch norms. Its oracle and its bounds, which judge the backends, are in `test`.
OF_KIT := $(patsubst %,tests/test_kit_%.py,authors causes check counts first grades plugin properties)
# What the CUDA kernels do beside the contract, which `test` holds them to.
EMULATED := tests/test_cupy_kernels.py

test: .venv/test  ## run all tests: NumPy, JAX and MXNet in one environment, CuPy emulated; lane-kit tests the kit itself
	POLYBN_REQUIRE=numpy,jax,mxnet $(call PYTEST,.venv) $(addprefix --ignore ,$(OF_KIT) $(EMULATED) tests/test_sabotage.py) $(ARGS)

lane-kit: .venv/test  ## test the conformance kit itself: what it says about right and wrong batch norms
	POLYBN_ONLY=numpy $(call PYTEST,.venv) $(OF_KIT) $(ARGS)

lane-sabotage: .venv/test  ## ask the conformance kit to find some 200 planted faults, which takes minutes
	POLYBN_ONLY=numpy $(call PYTEST,.venv) tests/test_sabotage.py $(ARGS)

# One process: a second one takes longer to start than it saves.
lane-plain: .venv/test  ## test the contract without the compiled loops: plain NumPy, and MXNet's operators
	POLYBN_KERNELS=0 POLYBN_ONLY=numpy,mxnet $(call PYTEST,.venv) -n 0 \
	    tests/test_accuracy.py tests/test_degenerate.py tests/test_gradients.py tests/test_lattice.py tests/test_layer.py \
	    tests/test_nan.py tests/test_purity.py tests/test_range.py tests/test_running_statistics.py tests/test_where.py $(ARGS)

# `make test` lets XLA compile quickly, which is what nearly all of JAX's tests do; here it optimizes as it does for users.
lane-xla: .venv/test  ## test JAX's arithmetic with XLA's default flags, ten epochs, and several devices
	XLA_FLAGS= POLYBN_ONLY=jax POLYBN_REQUIRE=jax $(call PYTEST,.venv) -k jax \
	    tests/test_conformance.py tests/test_fashion_mnist_training.py tests/test_accuracy.py tests/test_degenerate.py \
	    tests/test_gradients.py tests/test_range.py tests/test_symmetries.py tests/test_jax_range.py tests/test_jax_sharding.py \
	    tests/test_shell_blocks.py \
	    "tests/test_jax_processes.py::test_one_of_them_writes_and_a_run_of_them_is_resumed[4]" $(ARGS)

lanes: lane-kit lane-sabotage lane-plain lane-xla lane-older lane-torch lane-dask lane-cuda lane-pythons  ## run what differs in kind: other versions, compilers, Pythons

# The versions that pip resolves beside MXNet: NumPy 1, and with it an older JAX.
lane-older: .venv-older/test  ## test on NumPy 1 with the JAX and the MXNet that pip resolves beside it
	POLYBN_REQUIRE=numpy,jax,mxnet $(call PYTEST,.venv-older) -k "not several_devices" \
	    tests/test_protocol.py tests/test_layer.py tests/test_purity.py tests/test_jax_program.py \
	    tests/test_jax_transformations.py tests/test_jax_nnx.py tests/test_mxnet_*.py tests/test_range.py $(ARGS)

lane-pythons:  ## test NumPy, JAX and the kit on every other Python that is here: 3.12, 3.13, 3.14
	@for version in 3.12 3.13 3.14; do \
	    for python in python$$version $$HOME/.pyenv/versions/$$version.*/bin/python none; do \
	        $$python --version > /dev/null 2>&1 && break; \
	    done; \
	    if [ $$python = none ]; then echo "Python $$version: not found here"; continue; fi; \
	    echo "Python $$version: $$python"; \
	    $$python -m venv .venv-$$version && .venv-$$version/bin/python -m pip install --quiet --upgrade "pip>=25.1" && \
	    .venv-$$version/bin/python -m pip install --quiet --editable ".[plot,jax]" --group test && \
	    OPENBLAS_NUM_THREADS=1 POLYBN_REQUIRE=numpy,jax .venv-$$version/bin/python -m pytest -n 2 -q \
	        tests/test_protocol.py tests/test_layer.py tests/test_dispatch.py tests/test_conformance.py tests/test_agreement.py \
	        tests/test_purity.py $(ARGS) || exit 1; \
	done

lane-cuda: .venv/nvrtc  ## compile all CUDA kernels for three architectures and run them emulated, which needs no GPU
	POLYBN_REQUIRE_TOOLS=nvrtc,nvdisasm,g++ $(call PYTEST,.venv) tests/test_cupy_nvrtc.py tests/test_cupy_budget.py $(EMULATED) $(ARGS)

docs: .venv/docs  ## build the documentation into docs/_build/html; whatever does not resolve is an error
	rm -rf docs/_build
	$(BIN)/python -m sphinx --fail-on-warning --keep-going --nitpicky --quiet docs docs/_build/html

dist: .venv/pip  ## build the distributions, check them for the index, and try the wheel in an environment of its own
	$(BIN)/python -m pip install --quiet build twine
	rm -rf dist
	$(BIN)/python -m build .
	$(BIN)/twine check --strict dist/*
	$(BIN)/python -m tests.support.walk_wheel dist/*.whl

lane-torch: .venv-torch/test  ## test PyTorch and array-api-strict, a third party's backend, and the pages that need PyTorch, Keras or ONNX
	POLYBN_REQUIRE=torch,array_api_strict $(call PYTEST,.venv-torch) -k "(torch or array_api_strict) and not dask" \
	    tests/test_torch_peers.py tests/test_torch_modules.py tests/test_conformance.py tests/test_protocol.py \
	    tests/test_faults.py tests/test_where.py tests/test_range.py tests/test_second_order.py $(ARGS)
	$(call PYTEST,.venv-torch) tests/test_example_backend.py tests/test_conformance_page.py tests/test_pages.py \
	    tests/test_leaving_mxnet.py tests/test_exports.py tests/test_model_files.py tests/test_convert_command.py tests/test_hostile_files.py \
	    tests/test_inspection.py $(ARGS)

# The kit's other properties take most of an hour on Dask: `polybn check --backend dask`.
lane-dask: .venv-torch/test  ## test Dask's arrays, which are lazy and slow to ask: grades, local clusters, a killed worker
	POLYBN_REQUIRE=dask $(call PYTEST,.venv-torch) -k "dask and not keeps_to" tests/test_dask.py tests/test_conformance.py $(ARGS)

check: .venv-check/check  ## lint and types
	.venv-check/bin/ruff check .
	.venv-check/bin/ruff format --check .
	.venv-check/bin/mypy

bench: .venv/train  ## time batch norm and training steps of each backend that runs here
	$(BIN)/polybn bench $(ARGS)

gpu-check:  ## on a machine with a GPU and its own CuPy: kits, tests, timings, docs/results/cupy-<device>.json; ARGS="--budget 560"
	PYTHONPATH=.:backends $(PYTHON) -m tests.gpu.check $(ARGS)

clean:  ## remove what the other targets made, runs excepted
	rm -rf .venv .venv-check .venv-older .venv-torch .venv-3.* build dist docs/_build *.egg-info

.venv/pip: 
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade "pip>=25.1"
	touch $@

# An editable installation compiles the kernels once, so it is made anew where their source is newer.
KERNELS := setup.py $(wildcard backends/polybn_host/build.py backends/polybn_host/*/*.[ch])

# setuptools warns of editable installations in general, in ten lines that a newcomer cannot use: hence PYTHONWARNINGS.
.venv/train: pyproject.toml $(KERNELS) | .venv/pip
	PYTHONWARNINGS=ignore $(BIN)/python -m pip install --quiet --editable ".[plot,conformance]"
	touch $@

# MXNet's metadata asks for NumPy 1, hence --no-deps; requests and graphviz are what it imports.
.venv/test: pyproject.toml $(KERNELS) | .venv/pip
	PYTHONWARNINGS=ignore $(BIN)/python -m pip install --quiet --editable ".[all]" --group test "numpy>=2" optax requests graphviz "setuptools>=77"
	$(BIN)/python -m pip install --quiet --no-deps mxnet==1.9.1
	touch $@ .venv/train

.venv/nvrtc: pyproject.toml .venv/test
	$(BIN)/python -m pip install --quiet --group nvrtc
	touch $@

# Types are checked without the array libraries, whose own types differ from version to version.
.venv-check/check: pyproject.toml
	$(PYTHON) -m venv .venv-check
	.venv-check/bin/python -m pip install --quiet --upgrade "pip>=25.1"
	.venv-check/bin/python -m pip install --quiet --editable ".[plot]" --group check
	touch $@

.venv/docs: pyproject.toml .venv/test
	$(BIN)/python -m pip install --quiet --group docs
	touch $@

.venv-torch/test: pyproject.toml $(KERNELS) docs/examples/polybn_xarray/pyproject.toml
	$(PYTHON) -m venv .venv-torch
	.venv-torch/bin/python -m pip install --quiet --upgrade "pip>=25.1"
	.venv-torch/bin/python -m pip install --quiet --editable ".[all,array_api_strict,dask,torch]" --group test torch==2.13.0 expecttest "distributed>=2025.1" keras onnx onnxruntime requests graphviz \
	    "setuptools>=77" ./docs/examples/polybn_xarray
	.venv-torch/bin/python -m pip install --quiet --no-deps mxnet==1.9.1
	touch $@

.venv-older/test: pyproject.toml $(KERNELS)
	$(PYTHON) -m venv .venv-older
	.venv-older/bin/python -m pip install --quiet --upgrade "pip>=25.1"
	.venv-older/bin/python -m pip install --quiet --editable ".[plot,flax,mxnet]" --group test
	touch $@
