# The doors of the project. Each sets up what it needs, and is fast the second time.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
MODEL ?= cgan

.PHONY: help serve test trust check lint audit fit clean
help:  ## this list
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

serve: $(VENV)/installed  ## the service on the committed weights; settings are DRAWBRIDGE_* in the environment
	$(BIN)/python -m service

test: $(VENV)/installed  ## the tests
	$(BIN)/python -m pytest

trust: $(VENV)/installed  ## hurt the service and training, under 30 minutes; the table into docs/reliability.md
	$(BIN)/python -m trust --write docs/reliability.md

check: lint test  ## linters, types and tests

lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

audit:  ## look the pinned packages up among known vulnerabilities; needs the network
	$(PYTHON) -m venv .venv-audit
	.venv-audit/bin/pip install --quiet --disable-pip-version-check pip-audit==2.10.1
	.venv-audit/bin/pip-audit --requirement requirements.lock --no-deps --disable-pip

fit: $(VENV)/installed  ## train MODEL=cgan; again to go on, FLAGS='--max-minutes 10' for more
	$(BIN)/python -m training fit $(MODEL) $(FLAGS)

clean:  ## remove the virtual environment
	rm -rf $(VENV) .venv-audit

# The stamp is written last, so that an interrupted installation is taken up again.
$(VENV)/installed: requirements.lock
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed; name one with PYTHON=..., as in: make serve PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --requirement requirements.lock
	touch $@
