# Thin: what each target does is in the script or program it calls.
.PHONY: build demo test lint bench images cluster cluster-down conformance

build:           ## builds every program into target/release
	@deploy/build.sh

demo: build      ## builds, starts the example shop, shows it, cleans up
	@examples/setup.sh demo
	@target/release/demo

test: build      ## installs what the tests need and runs every test, on this machine and on Kubernetes
	@tests/setup.sh
	@cargo test --workspace --exclude weft-kubernetes-tests
	@tests/kubernetes/run.sh all

lint:            ## formatting, clippy with warnings as errors, cargo-deny
	@tests/lint.sh

images: build    ## packs the programs into container images, target/images/*.tar
	@deploy/images.sh

cluster:         ## starts Kubernetes clusters (CLUSTERS=1 NODES=1), says how to use kubectl on them
	@tests/kind/cluster.sh up

cluster-down:    ## ends them
	@tests/kind/cluster.sh down

conformance: build ## runs the Gateway API conformance suite in a cluster of its own; keeps the report in docs/conformance
	@tests/setup.sh
	@tests/kubernetes/run.sh conformance-alone

bench: build     ## measures Weft beside Envoy, HAProxy and nginx
	@bench/setup.sh
	@target/release/weft-bench
