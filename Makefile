# Thin: what each target does is in the script or program it calls.
.PHONY: demo test lint bench cluster cluster-down

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

cluster:         ## starts Kubernetes clusters (CLUSTERS=1 NODES=1), says how to use kubectl on them
	@tests/kind/cluster.sh up

cluster-down:    ## ends them
	@tests/kind/cluster.sh down

bench:           ## measures Weft beside Envoy, HAProxy and nginx
	@bench/setup.sh
	@cargo build --release --quiet
	@target/release/weft-bench
