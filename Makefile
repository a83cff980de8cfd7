# Everything a person or CI runs. Each target does its own set-up; nothing is installed outside this folder.

CARGO ?= cargo
# MPI is enabled if mpicc and libclang are found; setup/mpi.sh prints what is missing.
MPI = $(shell setup/mpi.sh)

# Recorded in the run folders of the program that is built.
export SIMCLR_COMMIT ?= $(shell git rev-parse --short=12 HEAD 2>/dev/null)

.PHONY: demo test build dist wheel book lint kernels msrv advisories bench setup clean-demo help

help: ## What can be run
	@grep -E '^[a-z-]+:.*##' Makefile | sed -E 's/:.*## /\t/' | expand -t 16

setup: ## Fetch libtorch (hash-pinned wheels; LIBTORCH or LIBTORCH_USE_PYTORCH wins)
	@setup/libtorch.sh

build: setup ## The release binary: target/release/simclr (with MPI where Open MPI and libclang are installed)
	$(CARGO) build --release --locked $(MPI)

dist: setup ## The release archive: dist/simclr-VERSION-x86_64-linux-cpu.tar.xz, with libraries, licences, SBOM; checked
	@CARGO="$(CARGO)" setup/dist.sh

wheel: setup ## The Python package: dist/simclr-VERSION-*.whl, from the release archive; tested in a fresh environment
	@CARGO="$(CARGO)" setup/wheel.sh

demo: build ## Fashion-MNIST from images to a verified encoder, within ten minutes on two cores
	@setup/fashion-mnist.sh
	@setup/demo.sh

book: ## The documentation as a site: target/book/index.html (with mdbook)
	@setup/book.sh

test: setup ## Every test
	$(CARGO) test --release --locked --workspace $(MPI)
	@if ip netns add simclr-probe 2>/dev/null && ip netns del simclr-probe; then \
	  $(CARGO) test --release --locked --workspace $(MPI) --test two_hosts -- --ignored --test-threads 1; \
	else echo "two machines (network namespaces): not tested, needs root and ip (Debian: iproute2)"; fi
	@setup/python_test.sh target/release/simclr

lint: setup ## Format, clippy, documentation links, licences of dependencies
	$(CARGO) fmt --all --check
	$(CARGO) clippy --release --locked --workspace --all-targets $(MPI) -- -D warnings
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --release --locked --workspace --no-deps
	@command -v cargo-deny >/dev/null || $(CARGO) install --locked cargo-deny
	$(CARGO) deny --all-features check bans licenses sources

kernels: setup ## Compile the GPU kernels with NVRTC, without a GPU (fetches it: 90 MB, hash-pinned)
	@CARGO="$(CARGO)" setup/kernels.sh

msrv: setup ## Compile with the oldest Rust that Cargo.toml declares (rustup installs it)
	$(CARGO) +$(shell sed -n 's/^rust-version = "\(.*\)"/\1/p' Cargo.toml) check --release --locked --workspace --target-dir target/msrv

advisories: ## Known vulnerabilities of dependencies (fetches RustSec's database)
	@command -v cargo-deny >/dev/null || $(CARGO) install --locked cargo-deny
	$(CARGO) deny --all-features check advisories

bench: build ## Us against the peers on the same work, in turns; BENCH="step views" for parts of it (PEER_PYTHON = a python with torch 2.11, torchvision, lightly, scikit-learn)
	$(CARGO) build --release --locked --workspace --examples
	python3 bench/bench.py $(BENCH)

clean-demo: ## Forget the demo's run
	rm -rf runs/demo
