# Penstock. `make demo` and `make test` do all their own set-up; nothing is installed outside this directory.
# ENGINE=cpu (default) runs vLLM's CPU build, ENGINE=gpu its CUDA build; each has its own lock file and environment.

ENGINE ?= cpu
# The first of these that is there and new enough; set-up says so where none is.
PYTHON ?= $(shell for one in python3.11 python3.12 python3.13 python3; do \
	$$one -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null && echo $$one && break; \
	done || echo python3)
VENV := $(if $(filter gpu,$(ENGINE)),.venv-gpu,.venv)
BIN := $(VENV)/bin
LOCK := requirements/$(ENGINE).lock
STAMP := $(VENV)/ready

.DEFAULT_GOAL := help
.PHONY: help setup gpu-host tools demo test test-fast test-slow test-browser test-engine test-chart test-full test-cluster coverage check versions \
	set-version breaking dist protos configuration clients chart reference docs docs-links lock audit digests sbom model quantize pictures pilot bench clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-13s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

setup: $(STAMP) ## the virtual environment, from the lock file (a few minutes once, then nothing)

PROJECTS := pyproject.toml clients/python-proto/pyproject.toml clients/python/pyproject.toml bench/pyproject.toml \
	gateway/pyproject.toml

$(STAMP): $(LOCK) $(PROJECTS) scripts/setup
	@echo "setting up $(VENV) from $(LOCK)"
	@$(PYTHON) scripts/setup $(VENV) $(LOCK)
	@touch $@

# With ENGINE=gpu what needs the GPU looks for it first: one line without one, before anything is installed.
GPU_HOST := $(if $(filter gpu,$(ENGINE)),gpu-host)
gpu-host:
	@PYTHONPATH=bench $(PYTHON) -m penstock_bench.gpu_check.cards

demo: $(GPU_HOST) setup ## ask the small model a question on the real engine (ENGINE=gpu for a GPU)
	@$(BIN)/penstock demo

# Workers of pytest-xdist, one module each at a time. Those that wait leave the cores to the others.
PARALLEL := -n 3 --dist loadscope
NO_ENGINE := --ignore=tests/engine --ignore=tests/chaos

# What takes a second here is listed at the end: it wants the marker `slow`, which moves it to `make test-slow`.
test-fast: setup ## tests without an engine: under two minutes on two cores
	@$(BIN)/python -m pytest -q $(PARALLEL) $(NO_ENGINE) --durations=20 --durations-min=1 -m "not engine and not slow and not full" $(ARGS)

test-slow: setup tools ## the other tests without an engine: toolchains, the chart, load, or a second and more
	@$(BIN)/python -m pytest -q $(PARALLEL) $(NO_ENGINE) -m "slow and not engine and not full" $(ARGS)

test-browser: setup tools ## the playground and the pilot's report in Chromium; fails without it
	@$(BIN)/python -m pytest -q tests/browser --require-tools -m "not engine" $(ARGS)

test: $(GPU_HOST) setup tools ## the tests before a commit lands: those without an engine, then those on the real engine; 35 minutes
	@$(BIN)/python -m pytest -q $(PARALLEL) $(NO_ENGINE) -m "not engine and not full" $(ARGS)
	@$(BIN)/python -m pytest -q -m "engine and not full" $(ARGS)

test-engine: $(GPU_HOST) setup ## the second half of `make test`: the tests on the real engine
	@$(BIN)/python -m pytest -q -m "engine and not full" $(ARGS)

test-chart: setup tools ## the Helm chart's tests, without the engine
	@$(BIN)/python -m pytest -q $(PARALLEL) tests/chart -m "not engine and not full" $(ARGS)

# Tests that let a disk be full would cut short what coverage.py writes. Whether the tests pass is for `make test` to say.
coverage: setup tools ## lines and branches that the tests without an engine run; fails below the floor of pyproject.toml
	@rm -rf build/coverage && mkdir -p build/coverage
	-@$(BIN)/python -m coverage run -m pytest -q $(PARALLEL) $(NO_ENGINE) -m "not engine and not full" \
		--ignore=tests/rpc/test_full_disks.py $(ARGS)
	@$(BIN)/python -m coverage combine --quiet
	@$(BIN)/python -m coverage report

test-full: setup ## all tests, no tool may be missing; writes docs/results/test-full-DATE.json; hours
	@$(BIN)/python scripts/tools --full
	@$(BIN)/python scripts/test-full $(ARGS)

# A cluster is named on the command line, never by the environment: the tests make and remove objects there.
NAMED = $(and $(filter command,$(firstword $(origin KUBECONFIG))),$(filter command,$(firstword $(origin CONTEXT))))
test-cluster: setup ## the chart on a real Kubernetes API: KUBECONFIG=FILE CONTEXT=NAME; in a namespace of its own, which goes
	$(if $(NAMED),,$(error name both on the command line: make test-cluster KUBECONFIG=FILE CONTEXT=NAME))
	@PATH="$(CURDIR)/$(BIN):$$PATH" PENSTOCK_CLUSTER_KUBECONFIG='$(KUBECONFIG)' PENSTOCK_CLUSTER_CONTEXT='$(CONTEXT)' \
		$(BIN)/python -m pytest -q tests/cluster $(ARGS)

check: setup ## style, types, import law, documentation, and that what is generated is current
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports
	@$(BIN)/python scripts/words --check
	@$(BIN)/python scripts/protos --check
	@$(BIN)/python scripts/configuration --check
	@$(BIN)/python scripts/api-docs --check
	@$(BIN)/python scripts/decisions --check
	@$(BIN)/python scripts/version --check
	@$(BIN)/python scripts/reference --check
	@$(BIN)/python scripts/architecture --check
	@$(BIN)/python scripts/docs
	@$(BIN)/python scripts/supply-chain audit $(if $(filter required,$(AUDIT)),--required)

audit: setup tools ## known advisories of every pinned package; exit status 2 where they could not be looked up
	@$(BIN)/python scripts/supply-chain audit --required

versions: setup ## what can be checked of Python 3.11 to 3.13 without them: locks, wheels, ruff, mypy
	@$(BIN)/python scripts/python-versions

set-version: ## the version of everything: make set-version VERSION=0.2.0
	@scripts/version $(or $(VERSION),$(error say which: make set-version VERSION=0.2.0))

breaking: setup tools ## `buf breaking`: what of protos/ would break a client since the last release
	@$(BIN)/python scripts/breaking $(ARGS)

dist: setup tools ## what a release consists of, from what is committed, in build/dist: wheels, npm package, chart
	@$(BIN)/python scripts/dist

protos: setup ## generate the stubs of all clients from protos/
	@$(BIN)/python scripts/protos
	@$(BIN)/python scripts/api-docs
	@$(BIN)/python scripts/reference
	@if [ -e .tools/npm.ready ]; then $(BIN)/python scripts/protos-typescript; else echo 'no Node here (make tools): TypeScript is not generated'; fi
	@if [ -e .tools/grpc-go.ready ]; then $(BIN)/python scripts/protos-go; else echo 'no Go here (make tools): Go is not generated'; fi

configuration: setup ## the configuration reference docs/reference/configuration.md, from the schema
	@$(BIN)/python scripts/configuration

reference: setup ## the reference pages of errors, metrics and commands, and the picture of the packages, from the code
	@$(BIN)/python scripts/reference
	@$(BIN)/python scripts/architecture

docs: setup ## the documentation's site in build/docs, with every link inside the repository checked
	@$(BIN)/python scripts/docs

docs-links: setup ## ask the addresses of other sites in the documentation; exit status 2 where there is no network
	@$(BIN)/python scripts/docs --external

chart: setup ## what the Helm chart takes from the service and from its own values: schema and table
	@$(BIN)/python scripts/chart

lock: setup ## resolve both lock files again (UPGRADE=1 takes newer versions)
	@UPGRADE=$(UPGRADE) scripts/lock

digests: setup ## base images of docker/ by digest, as their registries have them now (ARGS=--check only compares)
	@$(BIN)/python scripts/image-digests $(ARGS)

sbom: setup tools ## a CycloneDX bill of what each lock file brings, in build/
	@mkdir -p build
	@for lock in cpu gpu; do $(BIN)/python scripts/supply-chain sbom requirements/$$lock.lock > build/penstock-$$lock.cdx.json; done
	@ls build/*.cdx.json

model: setup ## train the small model that ships with the project
	@$(BIN)/python -m models.small
	@$(MAKE) quantize

quantize: setup ## the small model in FP8, from the bfloat16 one
	@rm -rf service/penstock/demo_model_fp8
	@$(BIN)/penstock quantize service/penstock/demo_model service/penstock/demo_model_fp8

tools: setup ## Node, Go and their packages into .tools/, for the clients' tests; what cannot be had is named, and skipped
	@$(BIN)/python scripts/tools

clients: setup tools ## the clients in all languages: conformance cases, examples, the client by reflection
	@$(BIN)/python -m pytest -q tests/conformance $(ARGS)

pilot: setup ## a pilot report of the small model in docs/pilot, on a machine that does nothing else
	@$(BIN)/python scripts/pilot $(ARGS)

bench: $(GPU_HOST) setup ## AsyncLLM, vllm serve and Penstock beside each other (ENGINE=gpu for a GPU; ARGS=--quick)
	@$(BIN)/python -m bench.compare $(ARGS)

pictures: setup ## the pictures of the README again; to be looked at before they are committed
	@$(BIN)/python scripts/pictures $(ARGS)

clean: ## remove everything that set-up and runs made
	rm -rf .venv .venv-gpu .tools .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache build
	find . -name __pycache__ -prune -exec rm -rf {} +
	find . -name '*.egg-info' -prune -exec rm -rf {} +
