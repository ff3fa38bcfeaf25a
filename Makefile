# Two commands on a fresh machine: `make run` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
UV := $(BIN)/uv

.PHONY: run up test chaos bench lint install lock clean

run: install
	$(BIN)/mailtide demo

up: install
	$(BIN)/mailtide up

test: install
	$(BIN)/pytest

chaos: install
	$(BIN)/python -m tests.chaos

bench: install
	$(UV) pip install -q --system-certs --extra bench -r pyproject.toml
	$(BIN)/python -m benchmarks $(if $(ONLY),--only $(ONLY))

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

install: $(VENV)/.installed

$(VENV)/.installed: requirements.lock pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --disable-pip-version-check uv==0.13.8
	$(UV) pip sync -q --system-certs --python $(BIN)/python requirements.lock
	$(UV) pip install -q --system-certs --python $(BIN)/python --no-deps -e .
	touch $@

lock:
	$(UV) pip compile -q --system-certs --universal --generate-hashes --extra train --extra dev --no-header --no-annotate pyproject.toml -o requirements.lock

clean:
	rm -rf $(VENV) .mailtide
