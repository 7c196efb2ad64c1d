# Lares: two commands matter, `make demo` and `make test`. `make help` lists the rest.

# Everything that is fetched or written outside the build tree: models, llama-server, the demo's state.
STATE ?= $(if $(filter 0,$(shell id -u)),/var/lib/lares-demo,$(or $(XDG_STATE_HOME),$(HOME)/.local/state)/lares-demo)
MODEL ?= qwen2.5-coder-0.5b-instruct
EMBED_MODEL ?= all-minilm-l6-v2
OPENAI ?= 3.54.0
TARGET := $(or $(CARGO_TARGET_DIR),target)

export LARES_LLAMA__MODELS_DIR := $(STATE)/models
export LARES_LLAMA__ENGINES_DIR := $(STATE)/engines

.DEFAULT_GOAL := help
.PHONY: help packages build demo test test-packages lint deny nix fixtures tools-servers tests-built unit tools-real tools-conformance systemd docs-nixos bench bench-tools-quality bench-tools-vetting fuzz clean

help: ## Show this
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

packages: ## Install the Debian packages that are missing, saying which
	@scripts/packages

build: ## Build the release binary
	@echo "building lares (first time: about a quarter of an hour on two cores) …"
	cargo build --release --locked --workspace --bin lares

demo: packages build ## Watch a real local model solve a coding task
	$(TARGET)/release/lares --state-dir $(STATE) demo --model $(MODEL)

test: test-packages lint deny nix fixtures unit tools-real tools-conformance systemd ## Prove everything: lints, unit tests, real parts, the demo itself

test-packages:
	@scripts/packages tests

lint:
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --locked -- -D warnings
	@# fuzz/ is a workspace of its own: nothing else would notice that its lock is behind.
	cargo metadata --locked --format-version 1 --manifest-path fuzz/Cargo.toml >/dev/null

deny:
	@scripts/deny

# One selection of packages for everything that tests build: what a crate is built with depends on what is built with it,
# and another selection would build most of them once more, llama.cpp among them.
tests-built:
	cargo test --workspace --locked --no-run

nix: tests-built ## Evaluate the NixOS modules: hosts, variations, mistakes, and that they have the configuration's keys
	@LARES_TEST_BIN="$(TARGET)/debug/lares" tests/nix/run

docs-nixos: ## Write docs/nixos-options.md and tests/systemd/rendered/ from the modules
	@tests/nix/run --write-docs
	@tests/systemd/run --write

fixtures: tests-built tools-servers ## Fetch what the tests of the whole use: models, llama-server, the OpenAI client, MCP servers
	$(TARGET)/debug/lares --state-dir $(STATE) engine install
	$(TARGET)/debug/lares --state-dir $(STATE) model pull $(MODEL)
	$(TARGET)/debug/lares --state-dir $(STATE) model pull $(EMBED_MODEL)
	@test -x $(STATE)/openai/bin/python || python3 -m venv $(STATE)/openai
	@$(STATE)/openai/bin/pip install --quiet --disable-pip-version-check openai==$(OPENAI) \
	  || echo "SKIP openai-client: the package cannot be installed here"

tools-servers:
	@tests/tools/install $(STATE)/mcp

# The parts that tests take from the environment; without them they print SKIP.
PARTS = LARES_TEST_MODEL="$(STATE)/models/$(MODEL).gguf" \
	LARES_TEST_EMBED_MODEL="$(STATE)/models/$(EMBED_MODEL).gguf" \
	LARES_TEST_LLAMA_SERVER="$$($(TARGET)/debug/lares --state-dir $(STATE) --json engine show | sed -n 's/^  "path": "\(.*\)",$$/\1/p')" \
	LARES_TEST_OPENAI_PYTHON="$(STATE)/openai/bin/python" \
	LARES_TEST_BIN="$(TARGET)/debug/lares" LARES_TEST_ROOTS="$(STATE)/roots" LARES_TEST_MCP="$(STATE)/mcp"

unit: tests-built ## Run the tests
	$(PARTS) cargo test --workspace --locked -- --show-output

tools-real: tests-built tools-servers ## Run the tools daemon with seven real MCP servers, each killed, hung and made to lie
	@$(PARTS) tests/tools/run

tools-conformance: tests-built tools-servers ## Run the conformance suite of MCP against the tools daemon
	@$(PARTS) tests/tools/conformance

systemd: ## Start the units that the modules render under real systemd, an older and a newer one
	@$(PARTS) tests/systemd/run
	@$(PARTS) tests/systemd/run --suite sid
	@$(PARTS) tests/systemd/dry-run
	@$(PARTS) tests/systemd/helper
	@$(PARTS) tests/systemd/faults --with healer --quick

bench: fixtures ## Measure against a baseline in the same run
	@$(PARTS) scripts/bench

bench-tools-vetting: ## Measure what vetting finds in the corpus of definitions
	scripts/bench tools-vetting

bench-tools-quality: fixtures ## Measure how well tools are found, in sets cloned into LARES_TEST_TOOL_SETS
	@$(PARTS) scripts/bench tools-quality

fuzz: ## Feed made-up bytes to what parses bytes of others, a minute each
	scripts/fuzz

clean: ## Remove the build tree (state in $(STATE) stays)
	cargo clean
