# Each target makes .venv if it is not there and installs what it needs.
VENV := .venv
BIN := $(VENV)/bin
BENCHMARKS := startup length_baselines durable predictor_speed predictors
SHELL := /bin/bash
.SHELLFLAGS := -eo pipefail -c

.PHONY: run test check fix bench clean

run: $(VENV)/.installed
	$(BIN)/uellm run sample_data/requests.jsonl --slo-file sample_data/slo.yaml

test: $(VENV)/.installed-dev check
	$(BIN)/coverage erase
	$(BIN)/coverage run -m pytest $(PYTEST_ARGS)
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report

check: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

fix: $(VENV)/.installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/.installed-dev
	mkdir -p benchmarks/results
	for name in $(BENCHMARKS); do \
	    $(BIN)/python -m benchmarks.$$name | tee benchmarks/results/$$name.txt; \
	done

clean:
	rm -rf $(VENV) .coverage .mypy_cache .pytest_cache .ruff_cache .import_linter_cache

$(VENV)/.installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || python3 -m venv $(VENV)
	$(BIN)/pip install --quiet -c constraints.txt -e .
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(BIN)/pip install --quiet -c constraints.txt -e '.[dev]'
	touch $@
