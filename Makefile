# Everything installs into .venv; nothing else of the machine is touched.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PORT ?= 3000
SERVICE ?= connectwise
export AVESA_HOME ?= $(CURDIR)/.avesa

.PHONY: demo dev test lint bench soak e2e clean

demo: $(STAMP)   ## connect a simulated tenant, backfill years, query it; SERVICE=servicenow|salesforce|all
	$(BIN)/avesa demo --service $(SERVICE)

dev: $(STAMP)    ## the Dagster UI on the demo's installation
	$(BIN)/avesa dev --port $(PORT)

test: $(STAMP) lint   ## the whole suite
	$(BIN)/pytest -n 2 --dist loadgroup -q

lint: $(STAMP)
	$(BIN)/ruff check avesa_dagster avesa_dagster_tests
	$(BIN)/ruff format --check avesa_dagster avesa_dagster_tests
	$(BIN)/mypy

bench: $(STAMP)  ## measures, side by side
	$(BIN)/python -m avesa_dagster_tests.bench

soak: $(STAMP)   ## thousands of hostile scripts, hundreds of kills, a million rows, 30 tenants, all again on AWS
	$(BIN)/pytest -n 2 --dist loadgroup -q -m thorough --timeout 1800
	AVESA_HOSTILE_SCRIPTS=3000 AVESA_KILLS=300 $(BIN)/pytest -n 2 -q --timeout 7200 \
		avesa_dagster_tests/extract/test_hostile_scripts.py avesa_dagster_tests/extract/test_kill.py \
		avesa_dagster_tests/defs/test_killed_runs.py
	AVESA_CONFORMANCE=all AVESA_CONFORMANCE_SCRIPTS=300 AVESA_CONFORMANCE_KILLS=60 \
		AVESA_CONFORMANCE_ROWS=1000000 $(BIN)/pytest -n 2 -q --timeout 7200 avesa_dagster_tests/conformance
	AVESA_CONFORMANCE_PROFILE=aws AVESA_CONFORMANCE_LOSSY=1 $(BIN)/pytest -n 2 -q --timeout 7200 \
		avesa_dagster_tests/conformance avesa_dagster_tests/extract/test_two_at_once.py \
		avesa_dagster_tests/extract/test_kill.py avesa_dagster_tests/extract/test_hostile_scripts.py
	$(BIN)/python -m avesa_dagster_tests.soak
	$(BIN)/python -m avesa_dagster_tests.soak kills tenants --aws
	$(BIN)/python -m avesa_dagster_tests.second_s3

e2e: $(STAMP)    ## a browser on the real UI; needs Debian's chromium
	$(BIN)/pytest -q -s -m e2e --timeout 900 avesa_dagster_tests/e2e

$(STAMP): pyproject.toml setup.py deploy/constraints.txt
	$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11) and 'Python 3.11 or newer is needed: make PYTHON=python3.11')"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint deploy/constraints.txt --editable '.[dev]'
	touch $(STAMP)

clean:
	rm -rf $(VENV) build *.egg-info
