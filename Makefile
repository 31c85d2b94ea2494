# `make` or `make help` lists the targets.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

GO      ?= go
BIN     := bin/certmill
VERSION := $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
LDFLAGS := -X github.com/certmill/certmill/internal/telemetry.Version=$(VERSION)
TOOL    := $(GO) tool -modfile=internal/tools/go.mod
WRITE_ASM := $(GO) run . -pkg p256x8
# buf runs in proto/.
PROTO_TOOL := $(GO) tool -modfile=../internal/tools/go.mod
# The profile of cmd/certmill makes other objects of every package that it needs. Only the
# program is to have them: tests and checks would compile all of it twice.
export GOFLAGS := -pgo=off $(shell $(GO) env GOFLAGS)
# How many packages are tested at a time: each brings servers of its own, and much of
# what they do is waiting.
PARALLEL ?= 3

.PHONY: help deps test-deps build demo demo-once test test-mesh test-scalar generate lint breaking proto-baseline bench bench-system bench-memory bench-ledger bench-mesh bench-ocsp chaos failpoints fuzz clean bench-overload pgo vuln sbom

help: ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)$$/  make \1\t\2/' | expand -t 22

deps: ## install what is missing: SoftHSM, PostgreSQL, Redis, openssl, curl, a C compiler
	@deploy/install-deps.sh

test-deps: ## the same, and the programs that the tests ask: GnuTLS, nginx, HAProxy, strongSwan, NSS
	@deploy/install-deps.sh test

build: ## build bin/certmill
	@mkdir -p bin
	$(GO) build -pgo=auto -ldflags '$(LDFLAGS)' -o $(BIN) ./cmd/certmill

demo: deps build ## the whole service on this machine, shown at work; stays up until Ctrl-C
	@exec $(BIN) dev --demo

demo-once: deps build ## the same, then stop; exit 0, or the step that failed
	@exec $(BIN) dev --demo --once

test: test-deps build ## all tests with the race detector, on real servers, end to end through the binary
	CERTMILL_BIN=$(CURDIR)/$(BIN) $(GO) test -race -p $(PARALLEL) -timeout 9m ./...
	@$(MAKE) --no-print-directory test-scalar test-mesh

test-scalar: ## signatures checked as on a processor without AVX-512 IFMA; part of `test`
	$(GO) test -count=1 -exec 'env GODEBUG=cpu.avx512ifma=off' ./internal/p256x8 ./internal/fixedkey ./internal/csr

test-mesh: build ## Istio's own CA client and go-spiffe against the binary; a module of its own, part of `test`
	cd gateway/meshtest && CERTMILL_BIN=$(CURDIR)/$(BIN) $(GO) test -count=1 -timeout 5m ./...

generate: ## regenerate proto/, the assembly of internal/p256x8, docs/configuration.md and docs/metrics.md
	cd proto && $(PROTO_TOOL) buf generate
	cd internal/p256x8/_asm && $(WRITE_ASM) -out ../kernel_amd64.s -stubs ../kernel_amd64.go
	$(GO) run ./cmd/certmill/configref -write docs/configuration.md
	$(GO) run ./cmd/certmill/metricsref -write docs/metrics.md

lint: ## gofmt, go vet, staticcheck, import rules, shell syntax, the API's compatibility
	@unformatted=$$(gofmt -l $$(git ls-files '*.go')); if [ -n "$$unformatted" ]; then echo "run gofmt -w on:"; echo "$$unformatted"; exit 1; fi
	$(GO) vet ./...
	CGO_ENABLED=0 $(GO) vet ./cmd/certmill
	cd gateway/meshtest && $(GO) vet ./...
	cd internal/p256x8/_asm && $(GO) vet .
	@d=$$(mktemp -d); (cd internal/p256x8/_asm && $(WRITE_ASM) -out $$d/kernel_amd64.s -stubs $$d/kernel_amd64.go); \
	for f in kernel_amd64.s kernel_amd64.go; do diff <(tail -n +2 $$d/$$f) <(tail -n +2 internal/p256x8/$$f) || { echo "internal/p256x8/$$f: run make generate"; exit 1; }; done; rm -r $$d
	$(TOOL) staticcheck ./...
	$(GO) test -count=1 ./internal/archtest
	for f in deploy/*.sh .ci/run; do bash -n "$$f"; done
	cd proto && $(PROTO_TOOL) buf lint
	$(MAKE) --no-print-directory breaking

breaking: ## is the public API still compatible with proto/certmill.binpb?
	cd proto && $(PROTO_TOOL) buf breaking --against certmill.binpb

proto-baseline: ## after a release: make today's API the one that `breaking` compares with
	cd proto && $(PROTO_TOOL) buf build -o certmill.binpb

.PHONY: deploy-check
deploy-check: build ## helm lint and template, kubeconform, compose, Dockerfiles, systemd units; three regions, dashboards, a rotation of all secrets
	cd deploy/check && $(GO) test -count=1 ./...
	CERTMILL_BIN=$(CURDIR)/$(BIN) CERTMILL_DEPLOY_LONG=1 $(GO) test -count=1 -timeout 9m -run 'TestThreeRegions|TestTheComposeStack.*/(a_certificate|dashboards|rotation|no_)' ./deploy/deploytest

.PHONY: panels
panels: ## bin/panels.html: every panel of the dashboards, drawn from a Prometheus that watches a whole stack at work
	@mkdir -p bin
	CERTMILL_DEPLOY_LONG=1 CERTMILL_PANELS=$(CURDIR)/bin/panels.html $(GO) test -count=1 -v -run 'TestTheComposeStack.*/(a_certificate|dashboards)' ./deploy/deploytest

bench: deps build ## time per step, and CPU per certificate beside its cryptography
	CERTMILL_BIN=$(CURDIR)/$(BIN) $(GO) test -run '^$$' -bench . -benchtime 1s -p 1 ./... | $(GO) run ./loadtest/bench

bench-system: deps build ## the whole service beside the floor, 1 to 16 signers: ratios, in one run of under 5 minutes
	$(GO) run ./loadtest/bench/system -bin $(BIN) $(BENCH_FLAGS)

bench-memory: deps build ## ten minutes at capacity: does the memory of any role grow?
	$(GO) run ./loadtest/bench/system -bin $(BIN) -parts memory -out bench-memory.json $(BENCH_FLAGS)

bench-ledger: deps build ## the service on a ledger of ten million beside a nearly empty one, and what a row takes; a quarter of an hour, 20 GB
	$(GO) run ./loadtest/bench/system -bin $(BIN) -parts ledger -out bench-ledger.json $(BENCH_FLAGS)

bench-mesh: deps build ## a mesh of 20,000 agents restarts: is everybody served, nobody twice, and does the herd dissolve? Under 5 minutes
	$(GO) run ./loadtest/bench/mesh -bin $(BIN) $(BENCH_FLAGS)

bench-ocsp: deps ## the OCSP responder beside a bare net/http handler, and Redis memory, at a million certificates
	$(GO) run ./ocsp/ocspbench

bench-overload: deps build ## the whole service under five times its signers' capacity for 30 s: goodput, refusals, fairness, memory, recovery
	$(GO) run ./loadtest/bench/overload -bin $(BIN) $(BENCH_FLAGS)

pgo: deps build ## record cmd/certmill/default.pgo, by which the compiler optimises the program; a minute and a half
	$(GO) run ./loadtest/bench/profile -bin $(BIN)

vuln: ## known vulnerabilities that the code reaches; says so where the database is out of reach
	@deploy/supply-chain.sh vuln

sbom: build ## bin/certmill.cdx.json: every module in the binary (CycloneDX)
	@deploy/supply-chain.sh sbom bin/certmill.cdx.json

chaos: deps build ## break the service on purpose for three minutes and judge what it kept; SEED=… repeats a run
	$(BIN) chaos $(if $(SEED),--seed $(SEED))

failpoints: deps build ## kill gateways and signers at every stop of a request's walk; nothing may be lost
	CERTMILL_ALL_FAILPOINTS=1 $(GO) test -count=1 -v -timeout 9m -run TestReliability/nothing ./loadtest/chaos

fuzz: ## every fuzz target for FUZZTIME (default 30s)
	@for pkg in $$(grep -rl --include='*_test.go' '^func Fuzz' . | xargs -n1 dirname | sort -u); do \
	  for f in $$(grep -hoE '^func Fuzz[A-Za-z0-9_]+' $$pkg/*_test.go | cut -c6-); do \
	    echo "$$pkg $$f"; $(GO) test -run '^$$' -fuzz "^$$f$$" -fuzztime $${FUZZTIME:-30s} $$pkg; done; done

clean: ## remove bin/ and the data of `certmill dev`
	rm -rf bin
	@if [ -d .certmill ]; then deploy/remove-data.sh .certmill; fi
