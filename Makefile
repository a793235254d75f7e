# The same commands at a desk, in continuous integration and (by deploy/install.sh) in the container.

VENV ?= .venv
PORT ?= 8000
PYTEST_ARGS ?=
# Processes that share the tests; auto: one a core, where the memory allows (tests/conftest.py).
JOBS ?= auto
BENCH_ARGS ?= serve
PEERS_ARGS ?=
CURVES := requests context adapters mixture rank
BIN := $(VENV)/bin
INSTALL := pyproject.toml constraints.txt deploy/install.sh
# Left out are tests on a GPU where there is none, and those that build the image (make test-image).
# "not arm" leaves out those of ARM code, too.
NO_GPU := $(if $(shell command -v nvidia-smi),,not gpu)
MARKERS ?= not image$(if $(NO_GPU), and $(NO_GPU))
# Several processes of torch share few cores: one thread each, and idle ones must sleep, not spin.
THREADS := OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} OMP_WAIT_POLICY=$${OMP_WAIT_POLICY:-PASSIVE}
# make test ISA=avx2: every process keeps to an older instruction set; unset: as the machine is.
ISA ?=
FORCED = $(if $(ISA),$(or $(shell $(BIN)/python -m adaptermix.bench.forced $(ISA)),$(error no ISA=$(ISA))))
# Each worker begins with a part of the tests of its own, so that few fixtures are made twice.
# They share their bytecode, too, whatever the machine's default: hundreds of processes import the packages.
PYTEST = env -u PYTHONDONTWRITEBYTECODE $(THREADS) $(FORCED) $(BIN)/python -m pytest -q -n $(JOBS) --dist worksteal
SHELL_FILES := .ci/run deploy/install.sh scripts/ensure-arm.sh scripts/ensure-debian.sh scripts/ensure-postgres.sh scripts/pin.sh

.DEFAULT_GOAL := help
.PHONY: help install pull run demo test test-image quick lint format bench bench-figures bench-peers docs constraints clean

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## /make \1\t/p' $(MAKEFILE_LIST) | expand -t 20

# A stamp holds the moment of the last whole installation; a change of the pins or the packages makes it old.
$(VENV)/.installed: $(INSTALL)
	deploy/install.sh $(VENV)
	@touch $@

$(VENV)/.installed-dev: $(INSTALL)
	deploy/install.sh $(VENV) dev
	@touch $(VENV)/.installed $@

install: $(VENV)/.installed ## the environment in .venv, at the pinned versions

pull: $(VENV)/.installed ## the default base model and the sentence encoder, into the cache
	$(BIN)/adaptermix pull

run: pull ## serve the default model and the four example adapters (PORT=8000)
	$(BIN)/adaptermix serve --port $(PORT) --adapters examples/adapters

demo: pull ## fixed, request-routed and token-routed mixtures at the same time, then stop
	$(BIN)/python -m scripts.demo

quick: $(VENV)/.installed-dev ## the quick suite: no network, no downloaded model
	$(PYTEST) $(PYTEST_ARGS)

test: $(VENV)/.installed-dev ## every test, with the real model, a real PostgreSQL and ARM code
	scripts/ensure-postgres.sh
	$(if $(findstring not arm,$(MARKERS)),,scripts/ensure-arm.sh)
	$(BIN)/adaptermix pull default all-minilm-l6-v2
	$(PYTEST) -m "$(MARKERS)" $(PYTEST_ARGS)

test-image: $(VENV)/.installed-dev ## the image, built and started in a plain Debian (root)
	scripts/ensure-debian.sh
	$(BIN)/python -m pytest -q -m image tests/test_image.py $(PYTEST_ARGS)

lint: $(VENV)/.installed-dev ## style, types, layers, Dockerfile, compose file, shell
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/hadolint Dockerfile
	$(BIN)/check-jsonschema -q --builtin-schema vendor.compose-spec deploy/docker/compose.yaml
	for file in $(SHELL_FILES); do bash -n $$file || exit 1; done

format: $(VENV)/.installed-dev ## rewrite the source in the project's style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/.installed-dev pull ## the serving benchmark (BENCH_ARGS="serve --help" lists its options)
	$(BIN)/adaptermix bench $(BENCH_ARGS)

bench-figures: $(VENV)/.installed-dev pull ## every figure of docs/performance.md but the peers' (about an hour)
	$(BIN)/adaptermix bench kernels
	$(BIN)/adaptermix bench engine
	$(BIN)/adaptermix bench engine $(CURVES:%=--curve %) --out benchmarks/results/curves
	$(BIN)/adaptermix bench serve
	$(BIN)/python -m scripts.docs

bench-peers: $(VENV)/.installed-dev pull ## ours beside the peers: the table of targets (half an hour, once the peers are installed)
	$(BIN)/adaptermix bench peers $(PEERS_ARGS)

docs: $(VENV)/.installed-dev ## write the generated pages anew and check every link
	$(BIN)/python -m scripts.docs

constraints: $(VENV)/.installed-dev ## pin what is installed now
	scripts/pin.sh $(BIN)/python > constraints.new
	mv constraints.new constraints.txt
	touch $(VENV)/.installed $(VENV)/.installed-dev

clean: ## the environment and every cache in the tree; the model cache stays
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache build dist *.egg-info examples/*/build examples/*/*.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
