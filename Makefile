# Everything happens in .venv, which the first target that needs it creates.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
RUN := runs/ml-100k
# The paper's task: which film does a user rate next, it or one drawn by popularity? With the settings that dien-fast tune
# found for DIEN; docs/models.md has DIN beside it.
TASK := --task next --first-event 5 --max-length 20 --sampling popularity --lr 0.0064 --weight-decay 3.9e-5 --mlp-dropout 0.07
export DIEN_FAST_CACHE ?= $(CURDIR)/.cache

.DEFAULT_GOAL := help

.PHONY: help
help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-18s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

NATIVE_SOURCES := $(shell find csrc -name '*.c*' -o -name '*.h')

$(READY): requirements-dev.txt pyproject.toml setup.py $(NATIVE_SOURCES)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo 'dien-fast needs Python 3.11 or newer; name one with: make PYTHON=python3.12 ...' >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-build-isolation --no-deps -e .
	@touch $@

.PHONY: venv
venv: $(READY) ## create .venv with the pinned development versions

.PHONY: train
train: $(READY) ## train DIEN on MovieLens-100K, on the paper's task; results in runs/ml-100k
	$(BIN)/dien-fast train --dataset ml-100k $(TASK) --output $(RUN) --overwrite $(ARGS)

.PHONY: resume
resume: $(READY) ## go on with a training that was interrupted
	$(BIN)/dien-fast train --output $(RUN) --resume $(ARGS)

WORKERS ?= $(shell nproc)
PYTEST := $(BIN)/python -m pytest -p no:benchmark --numprocesses $(WORKERS) --dist worksteal
PEERS := .venv-peers
COVERAGE := --cov --cov-report=term --cov-fail-under=90

.PHONY: test
test: $(READY) ## run the tests, but for slow ones; WORKERS=1 uses one core
	$(PYTEST) $(ARGS)

.PHONY: test-all
test-all: $(READY) $(PEERS)/torchrec/.ready ## run all tests with branch coverage: slow ones, every emulated case and the whole of make sanitize too
	$(PYTEST) $(COVERAGE) -m '' $(ARGS)

PEERS_READY := $(patsubst tests/peers/requirements/%.txt,$(PEERS)/%/.ready,$(wildcard tests/peers/requirements/*.txt))

# --no-deps: the files name everything, and nothing else may come in. torchrec asks for fbgemm-gpu, the CUDA build of
# fbgemm-gpu-cpu.
$(PEERS)/%/.ready: tests/peers/requirements/%.txt
	rm -rf $(@D)
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -r $<
	! $(@D)/bin/python -m pip check | grep -v -e '^No broken' -e '^torchrec [0-9.]* requires fbgemm-gpu, which is not'
	@touch $@

.PHONY: test-peers
test-peers: $(READY) $(PEERS_READY) ## train the supported libraries' own DIEN, plain and accelerated; compare DSIN; encode with Ray; shard with TorchRec
	$(PEERS)/deepctr/bin/python tests/peers/compare_dsin.py
	$(PEERS)/ray/bin/python tests/peers/encode_with_ray.py
	$(PEERS)/torchrec/bin/python tests/peers/shard_with_torchrec.py
	$(BIN)/python tests/peers/compare.py --environments $(PEERS) $(ARGS)

.PHONY: test-cuda-emulated
test-cuda-emulated: $(READY) ## run every case of the CUDA kernels on the host, without a GPU
	$(PYTEST) -m '' tests/cuda $(ARGS)

SIMULATOR := $(or $(GPGPUSIM_ROOT),$(CURDIR)/.cache/gpgpu-sim)

$(SIMULATOR)/env.sh:
	tests/cuda_simulator/build.sh $(SIMULATOR) $(GPGPUSIM_SOURCE)

.PHONY: test-cuda-simulated
test-cuda-simulated: $(READY) $(SIMULATOR)/env.sh ## run the CUDA kernels as PTX in GPGPU-Sim, which GPGPUSIM_ROOT names or this builds
	GPGPUSIM_ROOT=$(SIMULATOR) $(PYTEST) -m '' -rx tests/cuda_simulator $(ARGS)

.PHONY: sanitize
sanitize: $(READY) ## test the kernels under AddressSanitizer, UndefinedBehaviorSanitizer and ThreadSanitizer
	$(BIN)/python tests/support/run_sanitized.py

.PHONY: wheel
wheel: $(READY) ## build the wheel in dist/, one for every Python and torch
	rm -rf build/lib.* build/bdist.* dist/dien_fast-*.whl
	$(BIN)/python -m pip wheel --quiet --disable-pip-version-check --no-build-isolation --no-deps -w dist .
	@ls dist/dien_fast-*-py3-none-manylinux_*.whl || { echo 'the wheel has no native library' >&2; exit 1; }

.PHONY: docs
docs: $(READY) ## build the documentation in build/docs; a warning is an error
	$(BIN)/python -m sphinx -W --keep-going -q -b html docs build/docs
	@echo "written to build/docs/index.html"

.PHONY: docs-serve
docs-serve: docs ## build the documentation and show it at http://localhost:8000
	$(BIN)/python -m http.server --directory build/docs --bind localhost 8000

.PHONY: lint
lint: $(READY) ## check formatting, lint and types
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/pre-commit run --all-files --show-diff-on-failure

.PHONY: format
format: $(READY) ## rewrite the sources in the project's format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	git ls-files '*.h' '*.cpp' '*.cu' '*.cuh' | xargs -r $(BIN)/clang-format -i

.PHONY: bench
bench: $(READY) ## run the benchmarks and write their figures into the pages
	$(BIN)/python -m pytest benchmarks --benchmark-only --benchmark-autosave $(ARGS)
	OMP_PROC_BIND=true $(BIN)/python benchmarks/speed.py --compile  # two threads never share a core
	OMP_PROC_BIND=true $(BIN)/python benchmarks/model.py
	OMP_PROC_BIND=true $(BIN)/python benchmarks/embeddings.py
	$(BIN)/python benchmarks/memory.py
	$(BIN)/python benchmarks/serving.py --threads 1  # the clients take the other core
	$(BIN)/python benchmarks/report.py --here

.PHONY: clean
clean: ## remove .venv, caches and build outputs, but no run
	rm -rf $(VENV) $(PEERS) .cache build dist *.egg-info .coverage .mypy_cache .pytest_cache .ruff_cache .hypothesis
