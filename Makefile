# Thin: what each target does is in the script or program it calls.
.PHONY: demo test lint bench

demo:            ## builds, starts the example shop, shows it, cleans up
	@examples/setup.sh demo
	@cargo build --release --quiet
	@target/release/demo

test:            ## installs what the tests need and runs every test
	@tests/setup.sh
	@cargo build --release
	@cargo test --workspace

lint:            ## formatting, clippy with warnings as errors, cargo-deny
	@tests/lint.sh

bench:           ## measures Weft beside Envoy, HAProxy and nginx
	@bench/setup.sh
	@cargo build --release --quiet
	@target/release/weft-bench
