# Make is the interface: CI calls the same targets as you do.
.DEFAULT_GOAL := help
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
FRESH := $(VENV)/.fresh
PROTOS := $(sort $(wildcard proto/punchcard/*/v1/*.proto))
# The protoc plugins of mypy-protobuf are looked up on PATH.
export PATH := $(CURDIR)/$(BIN):$(PATH)

# Files of tests run beside each other, in the order of their names: the long ones come first, the short ones fill the end.
BESIDE := -n auto --dist loadfile --no-loadscope-reorder

# What `make demo` shows to the model (a list of files), and further words for soak, demo, up, down, token, prove and bench.
IMAGES ?=
ARGS ?=

.PHONY: help setup generate env-example lint format test test-all soak lock demo up down token prove bench clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(FRESH) ## Make .venv with everything pinned; does nothing when it is fresh

$(FRESH): requirements/dev.txt pyproject.toml
	@test -x $(BIN)/python || { echo "making $(VENV) with $$($(PYTHON) --version)"; $(PYTHON) -m venv $(VENV); }
	@echo "installing requirements/dev.txt, each package checked against its hash"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/dev.txt
	@echo "installing punchcard itself, editable"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-build-isolation --no-deps -e .
	@touch $@

# $(call generate_into,<folder>)
define generate_into
python -m grpc_tools.protoc -Iproto --python_out=$(1) --grpc_python_out=$(1) --mypy_out=quiet:$(1) \
	--mypy_grpc_out=quiet:$(1) --include_imports --include_source_info \
	--descriptor_set_out=$(1)/punchcard.protoset $(PROTOS)
endef

generate: setup ## Make gen/ from proto/: stubs, their types, and a protoset that keeps the comments for grpcurl
	$(call generate_into,gen)

env-example: setup ## Make .env.example from the settings classes
	python -m services.chassis.settings services.wallet.settings services.batcher.settings > .env.example

lint: setup ## Check style, types, protos, import rules, and that gen/ is fresh
	ruff check .
	ruff format --check .
	mypy
	buf lint
	lint-imports --no-logo
	@fresh=$$(mktemp -d) && trap 'rm -rf "$$fresh"' EXIT && $(call generate_into,$$fresh) && \
		diff --recursive --brief --exclude=__pycache__ gen "$$fresh" \
		|| { echo "gen/ is stale: run make generate"; exit 1; }

format: setup ## Format the code and mend what ruff can mend
	ruff check --fix .
	ruff format .

test: setup ## Run all tests but the slow ones
	pytest -m "not slow" $(BESIDE)

test-all: setup ## Run all tests
	pytest $(BESIDE)

soak: setup ## Run the wallet against its model for long (ARGS=100: as many times as long as in `make test`)
	PUNCHCARD_SOAK=$(or $(ARGS),20) pytest tests/conformance/test_wallet_machine.py

lock: setup ## Pin the requirements anew (needs uv)
	@command -v uv > /dev/null || { echo "make lock needs uv, which pins for every platform at once"; exit 1; }
	@for extra in wallet batcher sandbox dev; do echo "pinning requirements/$$extra.txt"; \
		uv pip compile --quiet --upgrade --universal --python-version 3.11 --generate-hashes --no-header --no-annotate \
			--no-emit-package punchcard --extra $$extra -o requirements/$$extra.txt pyproject.toml; done

demo: setup ## Send images through everything on this machine (IMAGES='a.jpg b.png')
	python -m sandbox.demo $(IMAGES) $(ARGS)

up: setup ## Start both services, S3 and the provider's twin
	python -m sandbox.stack up $(ARGS)

down: setup ## Stop what `make up` started
	python -m sandbox.stack down $(ARGS)

token: setup ## Print a bearer token for grpcurl (ARGS='alice')
	python -m sandbox.token $(ARGS)

prove: setup ## Search the economy's rules for tokens from nothing (ARGS=rings: among thousands, ARGS=year: show a year)
	python -m sandbox.prover $(or $(ARGS),search)

bench: setup ## Run the benchmarks and print one JSON line each (ARGS='chassis_echo')
	python -m benchmarks $(ARGS)

clean: ## Delete caches and the sandbox's data; .venv stays
	rm -rf .punchcard .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis dist
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +
