# make train | test | ci | bench | asan, from an empty checkout: needs Python 3.8 or newer with pip, and a
# C++ compiler for the native operations. make ipu-ops needs a Poplar SDK instead; make test-ipu-env
# runs the tests with the Python, torch and numpy of that SDK, and needs Python 3.8; make gpu needs a
# GPU and a $(PYTHON) that has torch: it installs and builds nothing.
#
#   PYTHON   the interpreter to start from; a torch that it has is used
#   VENV     the environment to make or to use; a torch that it has is kept
#   TORCH    what pip installs where there is no torch, with its options if need be, such as
#            TORCH="torch==2.4.0 --no-cache-dir"
#   CONFIG   which of examples/configs/*.toml `make train` runs, anew
#   DATASET  short for CONFIG=DATASET-complex, in runs/DATASET
#   ARGS     more arguments for besskge train, pytest or a benchmark
#
# and for make test-ipu-env, which installs the versions in custom_ops/ipu/poplar-sdk-3.4.txt:
#
#   PYTHON38  PYTHON of this; by default python3.8 of PATH, or the first 3.8 of pyenv
#   VENV38    VENV of this
#   TORCH38   TORCH of this. Pip's usual index has a torch with CUDA's libraries, 2.3 GB to fetch;
#             PyTorch's own, named in benchmarks/install_peers.sh, has one without, as the SDK has:
#             TORCH38="torch --index-url ..."

PYTHON ?= python3
VENV ?= .venv
TORCH ?= torch==2.13.0
DATASET ?= family
CONFIG ?= $(DATASET)-complex
ARGS ?=
IS_38 := import sys; sys.exit(sys.version_info[:2] != (3, 8))
PYTHON38 ?= $(shell for python in python3.8 "$${PYENV_ROOT:-$$HOME/.pyenv}"/versions/3.8.*/bin/python; do \
  "$$python" -c "$(IS_38)" 2> /dev/null && { echo "$$python"; break; }; done)
VENV38 ?= .venv-ipu
TORCH38 ?= torch
COVERAGE ?= --cov --cov-report=term
# Processes of pytest, each with tests that follow one another, which share fixtures. Threads of OpenMP
# that wait by spinning would keep the others from their processors.
WORKERS ?= -n auto --maxprocesses 8 --dist worksteal
# A file of versions for pip to keep to, or none.
CONSTRAINTS ?=

BIN := $(VENV)/bin
READY := $(VENV)/.besskge_core
BUILT_FROM := setup.cfg setup.py pyproject.toml \
  $(shell find custom_ops -path custom_ops/ipu -prune -o \( -name '*.cpp' -o -name '*.h' \) -print)

.PHONY: install train test test-ipu-env asan ipu-ops ci format format-check lint types bench gpu clean

install: $(READY)

train: $(READY)
	$(BIN)/besskge train --config examples/configs/$(CONFIG).toml \
	  --out runs/$(CONFIG:$(DATASET)-complex=$(DATASET)) --overwrite $(ARGS)

test: $(READY)
	OMP_WAIT_POLICY=passive $(BIN)/python -m pytest $(WORKERS) $(COVERAGE) $(ARGS)

# All tests: the IPU's runtime imports two thirds of the package, and who uses it the rest beside it.
# No coverage is asked for, as the Triton of that torch is too old for the kernels of GPUs.
test-ipu-env:
	@"$(PYTHON38)" -c "$(IS_38)" 2> /dev/null || { \
	  echo "PYTHON38='$(PYTHON38)' is no Python 3.8, which PopTorch needs. Install one, as with" \
	    "'pyenv install 3.8', or name it: make $@ PYTHON38=/path/to/python3.8" >&2; exit 1; }
	$(MAKE) test PYTHON="$(PYTHON38)" VENV="$(VENV38)" TORCH="$(TORCH38)" COVERAGE= \
	  CONSTRAINTS=custom_ops/ipu/poplar-sdk-3.4.txt

# The tests of the native operations, on a build of its own that stops at memory errors. Python is
# not built so: the runtime is preloaded, with the library whose throw it watches, and what Python
# keeps at its end is no leak of ours.
ASAN := build/asan
ASAN_TESTS := $(addprefix test_,native.py optim.py scatter_update.py gather.py sample.py pairs.py \
  sampled_loss.py fused.py indexed.py softmax_tiles.py rank_counts.py best_k.py)
asan: $(READY)
	CFLAGS="-fsanitize=address -fno-omit-frame-pointer" LDFLAGS="-fsanitize=address" \
	  $(BIN)/python setup.py -q build --build-base $(ASAN)-objects --build-lib $(ASAN)
	path() { $${CXX:-c++} -print-file-name=$$1; } && cd $(ASAN) && \
	  ASAN_OPTIONS=detect_leaks=0 LD_PRELOAD="$$(path libasan.so) $$(path libstdc++.so)" \
	  $(abspath $(BIN))/python -m pytest -q -s -c $(CURDIR)/setup.cfg --rootdir $(CURDIR) \
	  -p no:cacheprovider $(addprefix $(CURDIR)/tests/,$(ASAN_TESTS)) $(ARGS)

# Operations for the IPU, into build/ipu; says what is missing where there is no SDK.
ipu-ops:
	@$(MAKE) --no-print-directory -C custom_ops/ipu OUT=$(abspath build/ipu)

ci: format-check lint types test

format: $(READY)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

format-check: $(READY)
	$(BIN)/ruff format --check .

lint: $(READY)
	$(BIN)/ruff check .

types: $(READY)
	$(BIN)/python -m mypy

bench: $(READY)
	$(BIN)/python -m benchmarks.run $(ARGS)

# Tests and measurements on one GPU, from this tree as it is. ARGS=--rehearse tries them with tiny
# sizes on a CPU, into build/gpu-rehearsal.
gpu:
	PYTHONPATH=$(CURDIR) $(PYTHON) -m benchmarks.gpu $(ARGS)

clean:
	rm -rf build dist *.egg-info .coverage* .hypothesis .mypy_cache .pytest_cache .ruff_cache
	rm -f besskge_core/_native*.so $(READY) $(VENV38)/$(notdir $(READY))
	find . -name __pycache__ -prune -exec rm -rf {} +

# The environment, installed from the files above. Whatever torch is there stays: one of $(PYTHON)
# is made visible by a path file, and a constraint keeps pip from replacing it.
$(READY): $(BUILT_FROM) $(CONSTRAINTS)
	$(BIN)/python -m pip --version > /dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV) || { \
	  $(PYTHON) -m venv --clear --without-pip $(VENV) && \
	  $(PYTHON) -m pip --python $(BIN)/python install pip; }
	$(BIN)/python -c 'import torch' 2> /dev/null || { \
	  outer=$$($(PYTHON) -W ignore -c 'import os, torch; print(os.path.dirname(torch.__path__[0]))' \
	    2> /dev/null) && \
	  echo "$$outer" > "$$($(BIN)/python -c \
	    'import sysconfig; print(sysconfig.get_path("purelib"))')/besskge_core-torch.pth" && \
	  $(BIN)/python -W ignore -c 'import torch'; } || \
	  $(BIN)/python -m pip install $(addprefix -c ,$(CONSTRAINTS)) $(TORCH)
	$(BIN)/python -m pip list --format=freeze | grep '^torch==' > $(VENV)/constraints.txt
	cat $(CONSTRAINTS) /dev/null >> $(VENV)/constraints.txt
	$(BIN)/python -m pip install -c $(VENV)/constraints.txt 'pip>=21.3' 'setuptools>=64' wheel ninja
	$(BIN)/python -m pip install -c $(VENV)/constraints.txt --no-build-isolation -e '.[dev]'
	@$(BIN)/python -c 'from besskge_core.ops.native import MISSING; \
	  print("native operations:", MISSING or "built")'
	touch $(READY)
