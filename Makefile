# make demo | test | setup | test-all | lint | bench | bench-optimize | bench-decode | bench-export |
# bench-export-memory | bench-scale | bench-memory | bench-node-suite | fuzz-graphs. Everything is set up on
# first use; nothing is assumed installed but Python 3.11 and access to PyPI.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
PYTHON ?= python3.11
VENV := $(CURDIR)/.venv
BIN := $(VENV)/bin
DEMO ?= minilm
# onnxruntime sends telemetry unless this is set before its first import.
export ORT_DISABLE_TELEMETRY = 1
export HF_HUB_OFFLINE = 1
export PIP_DISABLE_PIP_VERSION_CHECK = 1

SOURCES := $(shell find core exporter passes runtime benchmarks -name '*.py' -o -name py.typed)
# Tests run in an empty folder, so that nothing but the installed wheel can be imported.
EMPTY := build/empty
PYTEST := cd $(EMPTY) && $(BIN)/pytest -c $(CURDIR)/setup.cfg --rootdir $(CURDIR) $(CURDIR)/tests

.PHONY: setup demo test test-all lint bench bench-optimize bench-decode bench-export bench-export-memory \
        bench-scale bench-memory bench-node-suite fuzz-graphs clean

setup: $(VENV)/.wheel

$(VENV)/.requirements: requirements/runtime.txt requirements/dev.txt
	@echo "Setting up $(VENV) (once; about two minutes)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/pip install --quiet --progress-bar off -r requirements/dev.txt 2> >(grep -v "is ignored: it is neither" >&2)
	@touch $@

# The wheel, not an editable install: what is tested is what a user gets.
$(VENV)/.wheel: $(VENV)/.requirements setup.cfg pyproject.toml README.md $(SOURCES)
	@rm -rf build/lib build/bdist.* build/wheel && mkdir -p build/wheel
	@$(BIN)/pip wheel --quiet --no-deps --no-build-isolation --wheel-dir build/wheel .
	@$(BIN)/pip install --quiet --no-deps --force-reinstall build/wheel/burnish-*.whl
	@rm -rf build/lib build/bdist.*
	@touch $@

demo: setup
	@$(BIN)/python -P -m burnish.benchmarks.demo --demo $(DEMO) --output build/demo

test: setup
	@mkdir -p $(EMPTY)
	@$(PYTEST) -n 2 -m "not slow and not gpu"

test-all: setup
	@mkdir -p $(EMPTY)
	@$(PYTEST) -n 2

lint: setup
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@mkdir -p $(EMPTY) && cd $(EMPTY) && $(BIN)/mypy --config-file $(CURDIR)/setup.cfg -p burnish | tee mypy.log
	@# mypy says "Success" too when it finds nothing to check: count.
	@checked=$$(sed -n 's/.* \([0-9]*\) source files.*/\1/p' $(EMPTY)/mypy.log); \
	 modules=$$(find core exporter passes runtime benchmarks -name '*.py' | wc -l); \
	 test "$${checked:-0}" -ge "$$modules" || { echo "mypy checked $$checked of $$modules modules"; exit 1; }

.venv-peers/.requirements: requirements/peers.txt
	@test -x .venv-peers/bin/python || $(PYTHON) -m venv .venv-peers
	@.venv-peers/bin/pip install --quiet --progress-bar off --no-deps -r requirements/peers.txt 2> >(grep -v "is ignored: it is neither" >&2)
	@touch $@

# burnish's optimiser beside six peers, on MiniLM alone: minutes. The report is build/bench/optimize.md.
bench: setup .venv-peers/.requirements
	@$(BIN)/python -P -m burnish.benchmarks.optimize --peers .venv-peers/bin/python --only 'minilm-*' --output build/bench

# The same on fifty real-size models: hours on two cores. What is done is kept in build/bench-optimize and not
# done again. OPTIMIZE_OPTIONS="--only 'ocr*' --force" does some of it again.
bench-optimize: setup .venv-peers/.requirements
	@$(BIN)/python -P -m burnish.benchmarks.optimize --peers .venv-peers/bin/python --results benchmarks/results $(OPTIMIZE_OPTIONS)

# SmolLM2 from GGUF and Whisper tiny.en: what the exported graphs write and hear beside PyTorch.
bench-decode: setup
	@$(BIN)/python -P -m burnish.benchmarks.acceptance --output build/decode --results benchmarks/results

.venv-peers-export/.requirements: requirements/peers-export.txt
	@test -x .venv-peers-export/bin/python || $(PYTHON) -m venv .venv-peers-export
	@.venv-peers-export/bin/pip install --quiet --progress-bar off -r requirements/peers-export.txt 2> >(grep -v "is ignored: it is neither" >&2)
	@touch $@

# About 45 minutes on two cores; what is done is kept in build/bench-export.jsonl and not done again.
bench-export: setup .venv-peers-export/.requirements
	@$(BIN)/python -P -m burnish.benchmarks.export --peers .venv-peers-export/bin/python $(EXPORT_OPTIONS)

# Peak memory and time of exporting a random 1.3 B Llama; BILLION=0.1, 3.0 or 7.0 for others.
BILLION ?= 1.3
bench-export-memory: setup .venv-peers-export/.requirements
	@$(BIN)/python -P -m burnish.benchmarks.export_memory --peers .venv-peers-export/bin/python --billion $(BILLION) --output build/export-memory --results benchmarks/results

# How the cost of optimising grows from 1,000 to 100,000 nodes.
bench-scale: setup
	@$(BIN)/python -P -m burnish.benchmarks.scale --output build/scale --results benchmarks/results

# Peak memory of optimising a large model, checked, beside peers; GIGABYTES=0.3 for a try (20 GB of disk otherwise).
GIGABYTES ?= 2.5
bench-memory: setup .venv-peers/.requirements
	@$(BIN)/python -P -m burnish.benchmarks.memory --gigabytes $(GIGABYTES) --peers .venv-peers/bin/python --output build/memory --results benchmarks/results

# ONNX's node tests under burnish and its peers; a quarter of an hour on two cores.
bench-node-suite: setup .venv-peers/.requirements
	@$(BIN)/python -P -m burnish.benchmarks.node_suite --peers .venv-peers/bin/python --results benchmarks/results

# Random graphs through the passes; FIRST=10000 COUNT=5000 for others. What is done is kept in build/random-graphs.
FIRST ?= 0
COUNT ?= 10000
fuzz-graphs: setup
	@$(BIN)/python -P -m burnish.benchmarks.random_graphs --first $(FIRST) --count $(COUNT) --output build/random-graphs

clean:
	rm -rf build .venv .venv-peers .venv-peers-export *.egg-info
