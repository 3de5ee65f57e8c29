# `make help` lists the targets. Everything runs from .venv, which `make setup` makes.

.DEFAULT_GOAL := help
SHELL := /bin/bash
BIN := .venv/bin
STAMP := .venv/.ready

.PHONY: help setup demo test test-image e2e fuzz storm simulate check generate golden lock image sbom release bench-overrun bench-gateway bench-streams bench-operator clean
.PHONY: bench-ledger bench-ledger-postgres bench-million bench-parts bench-profile bench-replicas

help: ## Show this list
	@awk -F':.*## ' '/^[a-z0-9-]+:.*## /{printf "  make %-21s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(STAMP) ## Make .venv with the llmbudget command, from the hash-locked requirements

$(STAMP): requirements-dev.txt pyproject.toml scripts/setup
	@scripts/setup
	@touch $(STAMP)

demo: setup ## Spend a budget on a real Kubernetes API on this machine (KEEP=1 leaves it running)
	@$(BIN)/llmbudget local demo $(if $(KEEP),--keep)

test: setup ## Run all tests, against a real Kubernetes API on this machine
	@$(BIN)/pytest -n $(or $(WORKERS),2) --dist loadfile

storm: setup ## Fifteen gateways, a thousand callers, everything breaking (ten minutes; SHORT=1: two)
	@STORM=1 $(BIN)/pytest tests/faults/test_storm.py $(if $(SHORT),,--storm) -s

e2e: setup ## Run a real cluster on this machine, and break it (Linux, root, Debian)
	@scripts/e2e

test-image: setup ## Build the image twice and look into it (root, Debian)
	@scripts/e2e image

fuzz: setup ## Send the gateway ten thousand requests made from its OpenAPI document (CASES=n)
	@FUZZ_CASES=$(or $(CASES),10000) $(BIN)/pytest tests/integration/test_gateway_fuzz.py -q -rP -n 2 --dist load --timeout=1800

check: setup ## Lint, types, import layers, generated files, CRDs compatible with the released ones
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/llmbudget crds generate --check
	$(BIN)/llmbudget local chart --check
	$(BIN)/llmbudget crds compare tests/crd/released

generate: setup ## Write crds/ and docs/reference.md from the models, the chart from manifests/
	$(BIN)/llmbudget crds generate
	$(BIN)/llmbudget local chart

golden: setup ## Write the golden files of tests/golden from what is rendered now
	$(BIN)/pytest tests/golden --update-golden

lock: setup ## Lock the dependencies of pyproject.toml, with hashes
	@scripts/lock

image: ## Build the image with buildah or docker (IMAGE=name, BASE_IMAGE=python image by digest)
	@scripts/image

sbom: ## Take the bill of materials out of the image, into dist/
	@scripts/sbom

release: setup ## Write dist/, for kubectl apply -f or Helm (IMAGE=registry/name@digest: your image)
	@$(BIN)/llmbudget local release $(if $(IMAGE),--image $(IMAGE)) dist

simulate: setup ## Try the promises in 3,000 simulated runs, each decided by a seed (SEEDS=FIRST-LAST, REGIONS=FIRST-LAST)
	$(BIN)/python -m tests.simulation $(or $(SEEDS),1-2000)
	$(BIN)/python -m tests.simulation $(or $(REGIONS),1-1000) --regions

bench-overrun: setup ## Try to overrun a cap: this gateway and LiteLLM side by side
	$(BIN)/python -m bench.overrun.run

bench-gateway: setup ## Throughput and latency beside nginx and LiteLLM (needs nginx, wrk, openssl)
	$(BIN)/python -m bench.gateway.run

bench-streams: setup ## A thousand open streams: lag, memory, processor time (needs nginx)
	$(BIN)/python -m bench.gateway.streams

bench-operator: setup ## A thousand budgets on a real API server, beside its raw limit (15 minutes)
	$(BIN)/python -m bench.operator.run

bench-ledger: setup ## Holds and settles beside the same statements without the ledger (SMALL=1: 20 s)
	$(BIN)/python -m bench.ledger.run $(if $(SMALL),--small)

bench-ledger-postgres: setup ## The same in PostgreSQL, by gateways; slices (needs PostgreSQL; SMALL=1)
	$(BIN)/python -m bench.ledger.postgres $(if $(SMALL),--small)

bench-million: setup ## A million calls: memory, the ledger's file, start, export, retention (needs nginx, wrk)
	$(BIN)/python -m bench.ledger.million

bench-replicas: setup ## One gateway and two on the same PostgreSQL ledger (needs nginx, wrk, PostgreSQL)
	$(BIN)/python -m bench.gateway.replicas

bench-parts: setup ## HTTP servers and clients that a gateway can be made of (needs nginx, wrk)
	$(BIN)/python -m bench.parts.run

bench-profile: setup ## Where a call's time goes: writes docs/flame-graph.txt (needs nginx, wrk)
	$(BIN)/python -m bench.gateway.profile --output docs/flame-graph.txt

clean: ## Remove .venv and caches of tools; the cache of built binaries stays
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
