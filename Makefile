# make train | test | ci | bench | asan, from an empty checkout: needs Python 3.8 or newer with pip, and a
# C++ compiler for the native operations. make ipu-ops needs a Poplar SDK instead, and make gpu a
# GPU and a $(PYTHON) that has torch: it installs and builds nothing.
#
#   PYTHON   the interpreter to start from; a torch that it has is used
#   VENV     the environment to make or to use; a torch that it has is kept
#   TORCH    what pip installs where there is no torch, with its options if need be, such as
#            TORCH="torch==2.4.0 --no-cache-dir"
#   CONFIG   which of examples/configs/*.toml `make train` runs, anew
#   DATASET  short for CONFIG=DATASET-complex, in runs/DATASET
#   ARGS     more arguments for besskge train, pytest or a benchmark

PYTHON ?= python3
VENV ?= .venv
TORCH ?= torch==2.13.0
DATASET ?= family
CONFIG ?= $(DATASET)-complex
ARGS ?=

BIN := $(VENV)/bin
READY := $(VENV)/.besskge_core
BUILT_FROM := setup.cfg setup.py pyproject.toml \
  $(shell find custom_ops -path custom_ops/ipu -prune -o \( -name '*.cpp' -o -name '*.h' \) -print)

.PHONY: install train test asan ipu-ops ci format format-check lint types bench gpu clean

install: $(READY)

train: $(READY)
	$(BIN)/besskge train --config examples/configs/$(CONFIG).toml \
	  --out runs/$(CONFIG:$(DATASET)-complex=$(DATASET)) --overwrite $(ARGS)

test: $(READY)
	$(BIN)/python -m pytest --cov --cov-report=term $(ARGS)

# The tests of the native operations, on a build of its own that stops at memory errors. Python is
# not built so: the runtime is preloaded, with the library whose throw it watches, and what Python
# keeps at its end is no leak of ours.
ASAN := build/asan
ASAN_TESTS := $(addprefix test_,native.py optim.py scatter_update.py gather.py sample.py pairs.py \
  sampled_loss.py fused.py softmax_tiles.py rank_counts.py)
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
	rm -rf build dist *.egg-info .coverage .hypothesis .mypy_cache .pytest_cache .ruff_cache
	rm -f besskge_core/_native*.so
	find . -name __pycache__ -prune -exec rm -rf {} +

# The environment, installed from the files above. Whatever torch is there stays: one of $(PYTHON)
# is made visible by a path file, and a constraint keeps pip from replacing it.
$(READY): $(BUILT_FROM)
	$(BIN)/python -m pip --version > /dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV) || { \
	  $(PYTHON) -m venv --clear --without-pip $(VENV) && \
	  $(PYTHON) -m pip --python $(BIN)/python install pip; }
	$(BIN)/python -c 'import torch' 2> /dev/null || { \
	  outer=$$($(PYTHON) -W ignore -c 'import os, torch; print(os.path.dirname(torch.__path__[0]))' \
	    2> /dev/null) && \
	  echo "$$outer" > "$$($(BIN)/python -c \
	    'import sysconfig; print(sysconfig.get_path("purelib"))')/besskge_core-torch.pth" && \
	  $(BIN)/python -W ignore -c 'import torch'; } || \
	  $(BIN)/python -m pip install $(TORCH)
	$(BIN)/python -m pip list --format=freeze | grep '^torch==' > $(VENV)/torch.txt
	$(BIN)/python -m pip install -c $(VENV)/torch.txt 'pip>=21.3' 'setuptools>=64' wheel ninja
	$(BIN)/python -m pip install -c $(VENV)/torch.txt --no-build-isolation -e '.[dev]'
	@$(BIN)/python -c 'from besskge_core.ops.native import MISSING; \
	  print("native operations:", MISSING or "built")'
	touch $(READY)
