# Needs Python 3.11 or newer. Everything is installed into .venv.

PYTHON ?= python3
VENV := .venv
PEERS := .venv-peers
LOWEST := .venv-lowest
NEWEST := .venv-newest
SITE := .venv-site
SCHEMAS := .venv-schemas
BIN := $(VENV)/bin
# Tests wait a third of their time for other processes, so two workers more than there are
# processors are faster than one for each.
WORKERS ?= $(shell expr $$(nproc 2>/dev/null || getconf _NPROCESSORS_ONLN) + 2)
PARALLEL := --numprocesses $(WORKERS) --dist worksteal --benchmark-disable

# Tests start hundreds of processes. Without bytecode files each would compile the project again.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help run test test-long test-lowest test-newest check format docs http-api pictures bench bench-peers slow-reader settings instructions loadtest open-loop outage held shutdown freshness deployment clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 14

# `make run` installs what the service needs, unless the tools of development are there already.
# Without BACKEND, DATABASE and .env it needs no servers and no clients of servers.
OTHERS := $(filter-out null memory sqlite,$(BACKEND) $(DATABASE))$(wildcard .env)
RUNS := $(if $(wildcard $(VENV)/installed),$(VENV)/installed,$(VENV)/runs$(if $(OTHERS)$(wildcard $(VENV)/runs-all),-all))

$(VENV)/runs: EXTRAS := service
$(VENV)/runs-all: EXTRAS := memcached,redis,servers,service
$(VENV)/runs $(VENV)/runs-all: PIP_OPTIONS := --no-compile
$(VENV)/installed: EXTRAS := dev
$(VENV)/installed: PIP_OPTIONS := --quiet
$(VENV)/runs $(VENV)/runs-all $(VENV)/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or newer is needed; name one with 'make PYTHON=python3.12 ...'" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install $(PIP_OPTIONS) --disable-pip-version-check \
	  --constraint constraints.txt --editable '.[$(EXTRAS)]'
	@touch $@

run: $(RUNS) ## start the service; BACKEND=null|memory|memcached|redis|tiered|postgres DATABASE=sqlite|postgres PORT=8001
	$(BIN)/python -m app dev $(if $(BACKEND),--backend '$(BACKEND)') $(if $(DATABASE),--database '$(DATABASE)') $(if $(PORT),--port '$(PORT)')

test: $(VENV)/installed ## run the tests; ARGS="-k poll" selects some, ARGS=--cov measures coverage
	$(BIN)/python -m pytest $(PARALLEL) $(ARGS)

test-long: $(VENV)/installed ## run the tests at full length: more faults, kills, examples and load
	$(BIN)/python -m pytest --long --timeout 900 -o faulthandler_timeout=960 $(PARALLEL) $(ARGS)

test-lowest: $(LOWEST)/installed ## test the library with the lowest versions that pyproject.toml allows
	$(LOWEST)/bin/python -m pytest $(PARALLEL) tests/jobcache $(ARGS)

$(LOWEST)/installed: pyproject.toml constraints.txt .ci/lowest.py
	$(PYTHON) -m venv $(LOWEST)
	$(PYTHON) .ci/lowest.py > $(LOWEST)/constraints.txt
	$(LOWEST)/bin/python -m pip install --quiet --disable-pip-version-check \
	  --constraint $(LOWEST)/constraints.txt --editable '.[dev]'
	@touch $@

test-newest: $(NEWEST)/installed ## test with the newest versions that pyproject.toml allows
	$(NEWEST)/bin/python -m pytest $(PARALLEL) $(ARGS)

# Without constraints.txt: it shows what users get who install the project today.
$(NEWEST)/installed: pyproject.toml
	$(PYTHON) -m venv $(NEWEST)
	$(NEWEST)/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@

check: $(VENV)/installed ## run ruff, mypy and the import contracts
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/installed ## format with ruff, and let it fix what it can
	$(BIN)/ruff check --fix-only
	$(BIN)/ruff format

bench: $(VENV)/installed ## run the benchmarks and write benchmarks/RESULTS.md; ARGS="--quick"
	$(BIN)/python -m benchmarks --write $(ARGS)

bench-peers: $(PEERS)/installed ## the same, and compare with other caches; ARGS="--quick"
	$(PEERS)/bin/python -m benchmarks --peers --write $(ARGS)

slow-reader: $(PEERS)/installed ## show which caches serve an old value after an invalidation
	$(PEERS)/bin/python -W ignore -m benchmarks.peers.slow_reader

# The project is installed beside the other caches, so that one run measures them all.
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

http-api: $(VENV)/installed ## write the tables of docs/http-api.md from the OpenAPI document
	PYTHONPATH=. $(BIN)/python .ci/http_api.py

pictures: $(VENV)/installed ## draw the pictures of docs/coherence.md
	$(BIN)/python .ci/pictures.py

# A warning is an error. The pages are copied first: `.ci/site_pages.py` says why.
docs: $(SITE)/installed ## build the documentation site in build/site
	@$(SITE)/bin/python .ci/site_pages.py build/pages
	$(SITE)/bin/zensical build --clean --strict

$(SITE)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(SITE)
	$(SITE)/bin/python -m pip install --quiet --disable-pip-version-check \
	  --constraint constraints.txt --editable '.[docs]'
	@touch $@

instructions: $(VENV)/installed ## count the instructions of the hottest paths and compare them; ARGS="--store"
	$(BIN)/python -m benchmarks.instructions $(ARGS)

loadtest: $(VENV)/installed ## simulate clients that poll each backend, and write a report; ARGS="--quick"
	$(BIN)/python -m loadtests run $(ARGS)

open-loop: $(VENV)/installed ## measure 10,000 pollers, each poll timed from when it was due; ARGS="--backend tiered"
	$(BIN)/python -m loadtests.open_loop --pollers 10000 --jobs 1000 --seconds 60 $(ARGS)

outage: $(VENV)/installed ## measure polls while Redis is unavailable; ARGS="--rounds 2"
	$(BIN)/python -m benchmarks.outage $(ARGS)

held: $(VENV)/installed ## measure 5,000 long polls: delay and cost; ARGS="--backend tiered"
	$(BIN)/python -m benchmarks.long_poll_scale $(ARGS)

shutdown: $(VENV)/installed ## measure how long servers take to stop while they hold requests; ARGS="--signs"
	$(BIN)/python -m benchmarks.shutdown $(ARGS)

freshness: $(VENV)/installed ## check a million polls for old answers while Redis and processes fail; ARGS="--quick"
	$(BIN)/python -m loadtests.freshness $(ARGS)

deployment: ## compare compose.yaml and deploy/kubernetes.yaml with the schemas of Compose and Kubernetes
	test -d $(SCHEMAS) || $(PYTHON) -m venv $(SCHEMAS)
	$(SCHEMAS)/bin/python -m pip install --quiet --disable-pip-version-check 'check-jsonschema>=0.39,<1' 'kubernetes-validate>=1.37,<2'
	$(SCHEMAS)/bin/check-jsonschema --builtin-schema vendor.compose-spec compose.yaml
	$(SCHEMAS)/bin/kubernetes-validate --strict deploy/kubernetes.yaml

clean: ## remove generated files, except var/
	rm -rf $(VENV) $(PEERS) $(LOWEST) $(NEWEST) $(SITE) $(SCHEMAS) .cache build *.egg-info .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis .benchmarks .coverage benchmarks/results loadtests/results
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
