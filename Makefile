# Everything happens in .venv; a machine needs Python 3.11 or newer, and make.

PYTHON ?= python3
VENV := .venv
PEERS := .venv-peers
BIN := $(VENV)/bin
# Of the tests: one for each core.
WORKERS ?= logical
PARALLEL := --numprocesses $(WORKERS) --dist worksteal --benchmark-disable

# Tests start hundreds of processes, each of which would compile the project anew.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help run test test-long check format bench bench-peers settings instructions loadtest outage held freshness clean

help: ## show this
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 12

# The service needs less than its tests.
RUNS := $(if $(wildcard $(VENV)/installed),$(VENV)/installed,$(VENV)/runs)

$(VENV)/runs: EXTRAS := client,redis,servers,service
$(VENV)/installed: EXTRAS := dev
$(VENV)/runs $(VENV)/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or newer is needed; name one with 'make PYTHON=python3.12 ...'" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check \
	  --constraint constraints.txt --editable '.[$(EXTRAS)]'
	@touch $@

run: $(RUNS) ## start the service; BACKEND=null|memory|redis|tiered DATABASE=sqlite|postgres
	$(BIN)/python -m app dev $(if $(BACKEND),--backend '$(BACKEND)') $(if $(DATABASE),--database '$(DATABASE)')

test: $(VENV)/installed ## run the tests; ARGS="-k poll" and the like, ARGS=--cov for coverage
	$(BIN)/python -m pytest $(PARALLEL) $(ARGS)

test-long: $(VENV)/installed ## the same at full length: more faults, kills, examples and load
	$(BIN)/python -m pytest --long --timeout 900 -o faulthandler_timeout=960 $(PARALLEL) $(ARGS)

check: $(VENV)/installed ## ruff, mypy and the import contracts
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/installed ## let ruff write
	$(BIN)/ruff check --fix-only
	$(BIN)/ruff format

bench: $(VENV)/installed ## measure, write benchmarks/RESULTS.md; ARGS="--quick"
	$(BIN)/python -m benchmarks --write $(ARGS)

bench-peers: $(PEERS)/installed ## the same, and the same work through other caches; ARGS="--quick"
	$(PEERS)/bin/python -m benchmarks --peers --write $(ARGS)

# Beside the peers the project itself, so that all are measured in one run.
$(PEERS)/installed: pyproject.toml constraints.txt benchmarks/peers/constraints.txt benchmarks/peers/requirements.txt
	$(PYTHON) -m venv $(PEERS)
	$(PEERS)/bin/python -m pip install --quiet --disable-pip-version-check \
	  --constraint constraints.txt --editable '.[dev]'
	@for peer in $$(grep -v '^#' benchmarks/peers/requirements.txt); do \
	  $(PEERS)/bin/python -m pip install --quiet --disable-pip-version-check \
	    --constraint constraints.txt --constraint benchmarks/peers/constraints.txt "$$peer" || \
	  echo "$$peer cannot be installed here; the results will name it" >&2; done
	@touch $@

settings: $(RUNS) ## write the tables of docs/settings.md from the code
	@sed -i.old '/^## Service/,$$d' docs/settings.md && rm docs/settings.md.old
	$(BIN)/python -m app settings >> docs/settings.md

instructions: $(VENV)/installed ## count those of the hottest paths, compare; ARGS="--store"
	$(BIN)/python -m benchmarks.instructions $(ARGS)

loadtest: $(VENV)/installed ## simulate pollers on each backend, print the table; ARGS="--users 10"
	$(BIN)/python -m loadtests $(ARGS)

outage: $(VENV)/installed ## what polls lose while Redis is away, beside null; ARGS="--rounds 2"
	$(BIN)/python -m benchmarks.outage $(ARGS)

held: $(VENV)/installed ## hold 5,000 requests: who is told, how soon, at what cost; ARGS="--backend tiered"
	$(BIN)/python -m benchmarks.long_poll_scale $(ARGS)

freshness: $(VENV)/installed ## check a million polls while Redis and processes fail; ARGS="--quick"
	$(BIN)/python -m loadtests.freshness $(ARGS)

clean: ## remove what the above made, but for var/
	rm -rf $(VENV) $(PEERS) build *.egg-info .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis .benchmarks .coverage benchmarks/results loadtests/results
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
