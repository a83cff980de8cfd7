#!/bin/sh
# Makes dist/simclr-VERSION-x86_64-linux-cpu.tar.xz: the program with the libraries of libtorch, for Debian 12 and later and other Linux
# with its glibc or a newer one, and checks it by running it without the build tree.
#
# The archive depends on the commit, the libtorch, the compilers and xz only: paths are replaced in the program, times are the commit's.
# `setup/dist.sh --no-build` packs the program of an earlier call. CARGO and CARGO_TARGET_DIR are used if they are set.
set -eu
cd "$(dirname "$0")/.."
umask 022
export LC_ALL=C

root=$(pwd -P)
version=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)
name=simclr-$version-x86_64-linux-cpu
out=$root/dist/$name.tar.xz
cargo=${CARGO:-cargo}
target=${CARGO_TARGET_DIR:-$root/target}/dist
program=$target/release/simclr
cargo_home=${CARGO_HOME:-$HOME/.cargo}

fail() { echo "error: $1" >&2; echo "hint: $2" >&2; exit 2; }

[ -z "${LIBTORCH_USE_PYTORCH:-}" ] || fail "the archive holds the CPU libtorch" "unset LIBTORCH_USE_PYTORCH"
[ "$(uname -s)-$(uname -m)" = Linux-x86_64 ] || fail "archives are made on Linux on x86-64 only" "cargo install, see README.md"
libtorch=$(cd "${LIBTORCH:-libtorch}" && pwd -P)
export LIBTORCH="$libtorch"
sysroot=$(rustc --print sysroot)

# The time in the program and of the files in the archive; compilers of C put it where sources have __DATE__ and __TIME__ (mimalloc).
export SOURCE_DATE_EPOCH="${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct)}"

# Panic messages and C++'s checks hold names of source files. A later map wins over an earlier one.
build() {
    separator=$(printf '\037')
    rust="-Cdebuginfo=0${separator}-Cstrip=symbols"
    cxx=
    for map in "$sysroot=/rust" "$cargo_home=/cargo" "$root=." "$target=./target" "$libtorch=/libtorch"; do
        rust="$rust${separator}--remap-path-prefix=$map"
        cxx="$cxx -ffile-prefix-map=$map"
    done
    SIMCLR_RELOCATABLE=1 CARGO_ENCODED_RUSTFLAGS="$rust" CFLAGS="${CFLAGS:-}$cxx" CXXFLAGS="${CXXFLAGS:-}$cxx" \
        CARGO_PROFILE_RELEASE_DEBUG=0 \
        $cargo build --release --locked --package simclr-cli --target-dir "$target"
}

# Copies the libraries of libtorch that file $1 needs, and those that they need.
add_libraries() {
    for library in $(readelf -d "$1" | sed -n 's/.*(NEEDED).*\[\(.*\)\]/\1/p'); do
        if [ -e "$libtorch/lib/$library" ] && [ ! -e "$tree/lib/$library" ]; then
            install -m 644 "$libtorch/lib/$library" "$tree/lib/"
            strip --strip-unneeded "$tree/lib/$library"
            add_libraries "$tree/lib/$library"
        fi
    done
}

assemble() {
    mkdir -p "$tree/bin" "$tree/lib" "$tree/docs" "$tree/recipes" "$tree/licences" "$tree/share/man/man1" \
        "$tree/share/bash-completion/completions" "$tree/share/zsh/site-functions" "$tree/share/fish/vendor_completions.d"
    install -m 755 "$program" "$tree/bin/simclr"
    strip --strip-all "$tree/bin/simclr"
    add_libraries "$tree/bin/simclr"
    "$tree/bin/simclr" man "$tree/share/man/man1" >/dev/null
    "$tree/bin/simclr" completions bash >"$tree/share/bash-completion/completions/simclr"
    "$tree/bin/simclr" completions zsh >"$tree/share/zsh/site-functions/_simclr"
    "$tree/bin/simclr" completions fish >"$tree/share/fish/vendor_completions.d/simclr.fish"
    cp configs/*.toml "$tree/recipes/"
    cp -r docs/. "$tree/docs/"
    rm -rf "$tree/docs/studies/runs" "$tree/docs/studies/figures" # of studies that ran here
    cp README.md CHANGELOG.md SECURITY.md LICENSE-MIT LICENSE-APACHE "$tree/"
    setup/libtorch.sh licences "$tree/licences"
    cat >"$tree/licences/libgomp.txt" <<END
lib/libgomp.so.1 is GCC's (https://gcc.gnu.org), under the GPL 3 or later with the GCC Runtime Library Exception 3.1. It is the file of
PyTorch's wheel.
END
    $cargo fetch --quiet --locked # crates of tests, too, which cargo metadata asks for
    CARGO="$cargo" python3 setup/sbom.py "$tree/lib" "$tree/sbom.cdx.json" "$tree/licences/crates.txt"
}

# Sizes of blocks are fixed, so that the bytes do not depend on the number of processors.
pack() {
    tar --create --directory "$work" --sort=name --format=gnu --mtime="@$SOURCE_DATE_EPOCH" --owner=0 --group=0 --numeric-owner \
        --mode=u=rwX,go=rX "$name" |
        xz --threads=2 --block-size=100MiB --x86 --lzma2=preset=9,dict=64MiB >"$work/archive"
    mkdir -p dist
    mv "$work/archive" "$out"
    (cd dist && sha256sum "$name.tar.xz" >"$name.tar.xz.sha256")
}

# Runs a command with the folders of the build empty, where mount namespaces can be made.
hidden() {
    if unshare --map-root-user --mount true 2>/dev/null; then
        unshare --map-root-user --mount sh -c '
            for folder in "$1" "$2" "$3" "$4" "$5"; do
                [ ! -d "$folder" ] || mount -t tmpfs none "$folder" || exit 2
            done
            shift 5; exec "$@"' \
            sh "$libtorch" "$target" "$cargo_home" "$sysroot" "$root" env -i -C / PATH=/usr/bin:/bin "$@"
    else
        echo "note: no mount namespaces here, so the build tree is not hidden" >&2
        env -i -C / PATH=/usr/bin:/bin "$@"
    fi
}

check() {
    fresh=$work/fresh
    mkdir -p "$fresh/images"
    tar --extract --xz --file "$out" --directory "$fresh"
    binary=$fresh/$name/bin/simclr
    for path in "$root" "$target" "$libtorch" "$cargo_home" "$sysroot"; do
        if strings -a "$binary" | grep -m 3 -F "$path" >&2; then fail "the program holds the path $path" "see build() of $0"; fi
    done
    readelf -d "$binary" | grep -q 'RUNPATH.*\[\$ORIGIN/\.\./lib\]$' || fail "RUNPATH is not \$ORIGIN/../lib" "crates/simclr-cli/build.rs"
    # Libraries that every Debian has: glibc's, and those of GCC that apt is linked against.
    base='(libc|libm|libdl|libpthread|librt|libutil|libgcc_s|libstdc\+\+)\.so\.[0-9]'
    for file in "$binary" "$fresh/$name"/lib/*; do
        foreign=$(env -i ldd "$file" | grep '=>' | grep -v -F -e "=> $fresh/$name/lib/" -e "=> $fresh/$name/bin/../lib/" | grep -v -E "^\s*$base => (/usr)?/lib") || true
        [ -z "$foreign" ] || fail "$(basename "$file") needs $foreign" "add_libraries() of $0"
    done
    for image in 1 2 3 4 5 6 7 8; do
        { printf 'P6 32 32 255\n'; tail -c +"$image"0001 "$binary" | head -c 3072; } >"$fresh/images/$image.ppm"
    done
    started=$(date +%s%N)
    hidden "$binary" views --data "$fresh/images" --image-size 32 --out "$fresh/views.png" >/dev/null
    [ -s "$fresh/views.png" ]
    echo "dist: simclr views ran from the archive alone, in $((($(date +%s%N) - started) / 1000000)) ms"
    glibc=$(objdump -T "$binary" "$fresh/$name"/lib/* | grep -o 'GLIBC_[0-9.]*' | sort -Vu | tail -n 1)
    glibcxx=$(objdump -T "$binary" "$fresh/$name"/lib/* | grep -o 'GLIBCXX_[0-9.]*' | sort -Vu | tail -n 1)
    echo "dist: needs $glibc, $glibcxx"
}

[ "${1:-}" = --no-build ] || build
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
tree=$work/$name
assemble
pack
check
echo "dist: $out, $(stat -c %s "$out") bytes, sha256 $(cut -d ' ' -f 1 "$out.sha256")"
