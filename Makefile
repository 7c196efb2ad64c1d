# Lares: two commands matter, `make demo` and `make test`. `make help` lists the rest.

# Everything that is fetched or written outside the build tree: models, llama-server, the demo's state.
STATE ?= $(if $(filter 0,$(shell id -u)),/var/lib/lares-demo,$(or $(XDG_STATE_HOME),$(HOME)/.local/state)/lares-demo)
MODEL ?= qwen2.5-coder-0.5b-instruct

export LARES_LLAMA__MODELS_DIR := $(STATE)/models
export LARES_LLAMA__ENGINES_DIR := $(STATE)/engines

.DEFAULT_GOAL := help
.PHONY: help packages build demo test lint deny fixtures unit bench clean

help: ## Show this
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

packages: ## Install the Debian packages that are missing, saying which
	@scripts/packages

build: ## Build the release binary
	@echo "building lares (first time: 5 to 10 minutes on two cores) …"
	cargo build --release --locked --package lares

demo: packages build ## Watch a real local model solve a coding task
	target/release/lares --state-dir $(STATE) demo --model $(MODEL)

test: packages lint deny fixtures unit ## Prove everything: lints, unit tests, real parts, the demo itself

lint:
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --locked -- -D warnings

deny:
	@scripts/deny

fixtures: ## Fetch the model and llama-server the tests use
	cargo build --locked --package lares
	target/debug/lares --state-dir $(STATE) engine install
	target/debug/lares --state-dir $(STATE) model pull $(MODEL)

unit:
	LARES_TEST_MODEL="$(STATE)/models/$(MODEL).gguf" \
	LARES_TEST_LLAMA_SERVER="$$(target/debug/lares --state-dir $(STATE) --json engine show | python3 -c 'import json,sys; print(json.load(sys.stdin)["path"])')" \
	cargo test --workspace --locked

bench: ## Measure against a baseline in the same run
	@scripts/bench

clean: ## Remove the build tree (state in $(STATE) stays)
	cargo clean
