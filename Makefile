# Freshet: `make` alone prints this help.
SHELL := /bin/sh
BIN := .venv/bin
STAMP := .venv/.installed
DAYS ?=
KILLS ?=
SEED ?=
PORT ?= 9092

.PHONY: help setup run compare faults kafka kafka-status kafka-stop chaos test check format lint types bench bench-kafka clean

help: ## Print this help
	@printf 'Freshet: streaming incremental view maintenance for machine learning\n\n'
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | awk -F'\t' '{printf "  make %-12s %s\n", $$1, $$2}'
	@printf '\nThe first of these to be run sets up a virtual environment in .venv (Python 3.10 to 3.12).\n'

setup: $(STAMP) ## Set up the virtual environment only

$(STAMP): pyproject.toml
	@set -e; \
	fits='import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))'; \
	if ! { [ -x $(BIN)/python ] && $(BIN)/python -c "$$fits"; }; then \
	  rm -rf .venv; \
	  found=; \
	  for p in python3.12 python3.11 python3.10 python3 python; do \
	    if "$$p" -c "$$fits" >/dev/null 2>&1; then found=$$p; break; fi; \
	  done; \
	  if [ -n "$$found" ]; then \
	    echo "setting up .venv with $$($$found --version)"; \
	    if command -v uv >/dev/null 2>&1; then uv venv -q --python "$$(command -v $$found)" .venv; else "$$found" -m venv .venv; fi; \
	  elif command -v uv >/dev/null 2>&1 && uv venv -q --python 3.12 .venv; then \
	    echo "setting up .venv with a Python 3.12 from uv"; \
	  else \
	    echo "error: no fitting Python found; Freshet needs Python 3.10, 3.11 or 3.12 (bytewax has no builds for later ones)." >&2; \
	    echo "Looked for python3.12, python3.11, python3.10, python3 and python; the last is $$(python3 --version 2>&1 || true)." >&2; \
	    echo "Install one of them (for example: apt install python3.11 python3.11-venv, or uv python install 3.12), then try again." >&2; \
	    exit 1; \
	  fi; \
	fi; \
	echo "installing Freshet and what it needs (once; a minute or two)"; \
	if command -v uv >/dev/null 2>&1; then uv pip install -q --python $(BIN)/python -e '.[dev,examples]'; \
	else $(BIN)/python -m pip install -q --disable-pip-version-check -e '.[dev,examples]'; fi; \
	touch $(STAMP)

run: $(STAMP) ## Stream the real flights of 2013 (DAYS=14: only the first days)
	@$(BIN)/freshet run examples/flights --out out/flights --state state/flights $(if $(DAYS),--days $(DAYS))

compare: $(STAMP) ## Compare refresh policies on the first 45 days of the flights (about 2 minutes; DAYS=14 for less)
	@$(BIN)/freshet compare examples/flights --model late --second-costs 10 --days $(or $(DAYS),45) --out out/flights/compare.html

faults: $(STAMP) ## Put faults into the flights' weather, and see which are found and what is wrong (about 2 minutes)
	@$(BIN)/python -m benchmarks.faults

kafka: $(STAMP) ## Start a Kafka broker on this machine (Java 17 and Maven; PORT=9093: another port)
	@$(BIN)/python -m deploy.broker start --port $(PORT)

kafka-status: $(STAMP) ## Say whether that broker answers, and where
	@$(BIN)/python -m deploy.broker status || true

kafka-stop: $(STAMP) ## Stop it; what it holds is kept in .cache/kafka
	@$(BIN)/python -m deploy.broker stop

chaos: $(STAMP) ## Kill a bank again and again, and compare record by record (KILLS=200; SEED=7: the same faults again)
	@$(BIN)/python -m tests.chaos --kills $(or $(KILLS),200) $(if $(SEED),--seed $(SEED))

test: $(STAMP) ## Run the tests
	@$(BIN)/python -m pytest -n auto --dist worksteal

check: format lint types test ## Format, lint, types, tests and docs: all that must pass

format: $(STAMP)
	@$(BIN)/ruff format --check .

lint: $(STAMP)
	@$(BIN)/ruff check .

types: $(STAMP)
	@$(BIN)/mypy

bench: $(STAMP) ## Measure against a hand-written loop and idiomatic bytewax, and a resume with a million keys
	@$(BIN)/python -m benchmarks
	@$(BIN)/python -m benchmarks.resume

bench-kafka: $(STAMP) ## Measure through a real broker, beside kafka-python alone (needs Java and Maven)
	@$(BIN)/python -m benchmarks.through_kafka

clean: ## Forget outputs and state
	rm -rf out state
