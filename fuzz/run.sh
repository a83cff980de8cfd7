#!/bin/sh
# Coverage-guided fuzzing with the stable compiler: builds the targets with LLVM's coverage counters and runs each for RUNS inputs from
# its corpus. An input that panics, takes over 10 s or over 2 GiB ends with an error and is kept in fuzz/artifacts/TARGET.
# usage: [RUNS=100000] [TARGETS="image tar ..."] fuzz/run.sh
set -eu
cd "$(dirname "$0")"
target=$(rustc -vV | sed -n 's/^host: //p')
# What `cargo fuzz` passes, without the sanitizers, which need a nightly compiler.
export RUSTFLAGS="-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
-Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
-Cllvm-args=-sanitizer-coverage-trace-compares --cfg fuzzing -Ccodegen-units=1"
cargo build --release --locked --target "$target"
for name in ${TARGETS:-image tar parquet idx packed labels}; do
    # New inputs go to the first folder, the committed ones are the second.
    mkdir -p "found/$name" "artifacts/$name"
    echo "== $name"
    "target/$target/release/$name" "found/$name" "corpus/$name" -runs="${RUNS:-100000}" -timeout=10 -rss_limit_mb=2048 -max_len=16384 \
        -artifact_prefix="artifacts/$name/" -print_final_stats=1 -verbosity=0 -seed=1
done
