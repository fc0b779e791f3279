# Each target first installs what it needs into .venv; `make help` lists them.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
MODEL ?= cgan
# The build of PyTorch: empty for the locked one, which brings 6 GB of CUDA on Linux; or cpu, cu130, ... from PyTorch's own
# index, in the locked version. TORCH_INDEX may also be a directory of wheels. After a change, `make clean` first.
TORCH ?=
TORCH_INDEX ?= https://download.pytorch.org/whl/$(TORCH)
TORCH_SOURCE = $(if $(wildcard $(TORCH_INDEX)),--no-index --find-links,--index-url) $(TORCH_INDEX)
LOCK = $(if $(TORCH),$(VENV)/without-torch.lock,requirements.lock)
PIP = $(BIN)/python -m pip install --quiet --disable-pip-version-check

.PHONY: help serve class test test-all chaos gpu trust check lint audit fit clean
help:  ## show this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

serve: $(VENV)/installed  ## run the service with the committed weights; settings are environment variables DRAWBRIDGE_*
	$(BIN)/drawbridge serve

class: $(VENV)/installed  ## serve a class on the local network, without keys; prints the address and a QR code
	$(BIN)/drawbridge serve --class

test: $(VENV)/installed  ## run the tests, without the slow ones
	$(BIN)/python -m pytest

test-all: $(VENV)/installed  ## run all tests
	$(BIN)/python -m pytest -m ""

check: lint test  ## run linters, type checks and tests

lint: $(VENV)/installed  ## run linters and type checks
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

chaos: $(VENV)/installed  ## run the fault-injection suite, under 30 minutes; writes its table into docs/reliability.md
	$(BIN)/python -m chaos --write docs/reliability.md

gpu: $(VENV)/installed  ## measure the service on a GPU; writes its tables into docs/gpu.md
	$(BIN)/python -m benchmarks gpu --write docs/gpu.md

trust:
	@echo "make trust is now called make chaos; the next version removes the old name" >&2
	$(MAKE) chaos

audit:  ## look for known vulnerabilities of the locked packages; needs the network
	$(PYTHON) -m venv .venv-audit
	.venv-audit/bin/pip install --quiet --disable-pip-version-check pip-audit==2.10.1
	.venv-audit/bin/pip-audit --requirement requirements.lock --no-deps --disable-pip

fit: $(VENV)/installed  ## train MODEL=cgan, or continue; FLAGS='--max-minutes 10' adds flags
	$(BIN)/drawbridge fit $(MODEL) $(FLAGS)

clean:  ## remove the virtual environments
	rm -rf $(VENV) .venv-audit

# The stamp is written last, so that after an interruption the next run installs again. The locked build backend installs
# the project itself, editable and without the network.
$(VENV)/installed: requirements.lock pyproject.toml drawbridge/__init__.py
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed; name one with PYTHON=..., as in: make serve PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv $(VENV)
ifneq ($(TORCH),)
	$(PIP) --no-deps $(TORCH_SOURCE) $$(grep -oE '^(torch|torchvision)==[^ ]+' requirements.lock)
	awk '/^[a-z]/ { skip = /^(torch|torchvision|triton|nvidia-[a-z0-9-]+|cuda-[a-z0-9-]+)==/ } !skip' requirements.lock \
		> $(LOCK)
endif
	$(PIP) --requirement $(LOCK)
	$(PIP) --no-deps --no-index --no-build-isolation --editable .
	touch $@
