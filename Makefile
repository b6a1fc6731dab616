# Two commands do everything: `make retrain` and `make test`. Each sets up what is missing first.
.DEFAULT_GOAL := help
SHELL := bash
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
ARGS ?=
WITH_JAVA = JAVA_HOME="$$(scripts/ensure_java.sh)"

.PHONY: help setup java retrain up down e2e test check lint types contracts unit integration image-test benchmarks ablation ablation-quick bench-retrieval bench-index bench-serving bench-churn bench-tokenizers chaos lock clean

help:  ## list the commands
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 17

$(STAMP): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info[:2] == (3, 11) else f"Python 3.11 is needed, found {sys.version.split()[0]}: set PYTHON=/path/to/python3.11")'
	@test -x $(BIN)/python || { echo "creating $(VENV)"; $(PYTHON) -m venv $(VENV); }
	@echo "installing the locked packages (some minutes the first time)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -e .
	@touch $@

setup: $(STAMP) java  ## virtual environment from the lock, Java found or installed

java:
	@scripts/ensure_java.sh >/dev/null

retrain: setup  ## the daily run, end to end: make retrain ARGS="--date 2017-11-15"
	@$(WITH_JAVA) $(BIN)/dig retrain $(ARGS)

up: setup  ## PostgreSQL, Redis, MLflow and a real Airflow on this machine; ARGS="--set stack.airflow_port=0"
	@$(WITH_JAVA) $(BIN)/python -m ops up $(ARGS)

down: $(STAMP)  ## stop them; the data stay, unless ARGS=--purge
	@$(BIN)/python -m ops down $(ARGS)

e2e: setup  ## the daily run through the REST API of what `make up` started
	@$(WITH_JAVA) DIG_E2E_HOME="$${DIG_E2E_HOME:-.dig}" $(BIN)/pytest tests/integration/test_live.py

test: check integration  ## every check: lint, types, import contracts, unit and integration tests

check: setup lint types contracts unit  ## the quick part of `make test`, under two minutes

lint: $(STAMP)
	@$(BIN)/ruff check . && $(BIN)/ruff format --check .

types: $(STAMP)
	@$(BIN)/mypy

contracts: $(STAMP)
	@$(BIN)/lint-imports

unit: $(STAMP)
	@$(BIN)/pytest -m "not slow" -q -n 2 --dist loadfile

integration: setup
	@$(WITH_JAVA) $(BIN)/pytest -m slow -n 2 --dist loadfile --no-loadscope-reorder

image-test:  ## build the container image for real and test it, as root on a Debian; not part of `make test`
	@scripts/image_test.sh $(ARGS)

benchmarks: setup  ## the scripts of benchmarks/ that need no server, after `make retrain`; results in benchmarks/results
	@$(WITH_JAVA) $(BIN)/python -m benchmarks.features
	@$(WITH_JAVA) $(BIN)/python -m benchmarks.backfill
	@OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.crosses
	@$(BIN)/python -m torch.distributed.run --standalone --nproc-per-node 2 -m benchmarks.training
	@$(BIN)/python -m benchmarks.baselines
	@$(BIN)/python -m benchmarks.beam
	@$(BIN)/python -m benchmarks.negatives
	@$(BIN)/python -m benchmarks.quality

ablation: setup  ## what each part of the method is worth, and the baselines, three seeds, from the raw tables on; hours, goes on where it was stopped; ARGS=--all: every switch
	@$(WITH_JAVA) $(BIN)/python -m benchmarks.ablation --features --baselines $(ARGS)

ablation-quick: setup  ## a small one from the raw tables on: the published grid, one seed, twelve days; minutes
	@$(WITH_JAVA) $(BIN)/python -m benchmarks.ablation --features --quick $(ARGS)

bench-retrieval: setup  ## retrieval at 10k to 10M items beside six other ways; tables and plots in benchmarks/results
	@$(BIN)/python -m benchmarks.retrieval $(ARGS)

bench-index: setup  ## seconds and memory to build, verify, open and refresh generations of up to 1M items
	@$(BIN)/python -m benchmarks.index_build $(ARGS)

bench-serving: setup  ## requests a second and latencies with index switches, after `make retrain`; needs wrk
	@$(BIN)/python -m benchmarks.serving $(ARGS)

bench-churn: setup  ## share of items that change their SID from day to day; needs the lake up to the last day
	@$(BIN)/python -m benchmarks.churn $(ARGS)

bench-tokenizers: setup  ## tokenizers behind one generator, beside SASRec: TOKENIZER_DATA=PATH make bench-tokenizers
	@$(BIN)/python -m benchmarks.tokenizers $(ARGS)

lock:  ## write requirements.lock anew from what the environment holds
	@{ grep '^#' requirements.lock; $(BIN)/python -m pip freeze --exclude-editable | sed -e 's/+cpu$$//'; } > requirements.lock.new
	@mv requirements.lock.new requirements.lock

chaos: setup  ## kill every step of every protocol and the servers under a running day; a table of what readers saw
	@$(WITH_JAVA) $(BIN)/pytest -q --durations=0 --durations-min=60 tests/integration/test_crash.py tests/integration/test_live_faults.py $(ARGS)

clean:  ## remove what runs wrote; the virtual environment stays
	@if [ -d .dig/stack ]; then $(BIN)/python -m ops down --set paths.home=.dig --purge; fi
	@rm -rf .dig .mypy_cache .ruff_cache .pytest_cache build *.egg-info
