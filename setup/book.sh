#!/bin/sh
# The documentation in ./docs as a site in ./target/book, with the mdbook on the path or one installed into ./target/mdbook.
set -eu
cd "$(dirname "$0")/.."
version=0.5.4
own=target/mdbook/bin/mdbook

if command -v mdbook >/dev/null; then mdbook=mdbook
elif [ -x "$own" ]; then mdbook=$own
elif command -v "${CARGO:-cargo}" >/dev/null; then
    echo "book: installing mdbook $version into ./target/mdbook (once; it needs Rust 1.88 and the registry)"
    "${CARGO:-cargo}" install --locked --quiet --root target/mdbook --version "$version" mdbook || {
        echo "error: mdbook $version cannot be installed" >&2
        echo "hint: put an mdbook of version 0.5 on the path (https://rust-lang.github.io/mdBook/guide/installation.html)" >&2
        exit 2
    }
    mdbook=$own
else
    echo "error: neither mdbook nor cargo is on the path" >&2
    echo "hint: https://rust-lang.github.io/mdBook/guide/installation.html" >&2
    exit 2
fi
"$mdbook" build docs
echo "book: ready in ./target/book/index.html"
