#!/bin/sh
# Fetches Fashion-MNIST (MIT licence) into ./datasets/fashion-mnist: four gzipped IDX files.
#
# From Debian's package dataset-fashion-mnist, unpacked without installing it; where there is no apt, from the data set's
# own project. Contents are checked uncompressed, since the two sources compress them differently. Idempotent: the folder
# appears by one rename.
set -eu
cd "$(dirname "$0")/.."
target=datasets/fashion-mnist
project=https://github.com/zalandoresearch/fashion-mnist
files="train-images-idx3-ubyte train-labels-idx1-ubyte t10k-images-idx3-ubyte t10k-labels-idx1-ubyte"

if [ -d "$target" ]; then exit 0; fi
mkdir -p datasets
part=$(mktemp -d datasets/.partial-XXXXXX)
trap 'rm -rf "$part"' EXIT
sums=$(pwd)/setup/fashion-mnist.sha256

from_debian() {
    command -v apt-get >/dev/null && command -v dpkg-deb >/dev/null || return 1
    mkdir -p "$part/state/lists/partial" "$part/cache/archives/partial"
    # A state of its own, so that neither root nor a fresh package index is needed.
    set -- -qq -o "Dir::State=$PWD/$part/state" -o "Dir::State::status=/var/lib/dpkg/status" -o "Dir::Cache=$PWD/$part/cache"
    apt-get "$@" update && (cd "$part" && apt-get "$@" download dataset-fashion-mnist) || return 1
    dpkg-deb -x "$part"/dataset-fashion-mnist_*.deb "$part/deb"
    source_folder=$part/deb/usr/share/datasets/fashion-mnist
}

from_project() {
    command -v git >/dev/null || return 1
    git clone --quiet --depth 1 "$project" "$part/git" || return 1
    source_folder=$part/git/data/fashion
}

echo "fashion-mnist: fetching (31 MB, once)"
if ! from_debian && ! from_project; then
    echo "error: Fashion-MNIST can be had neither from Debian's package dataset-fashion-mnist nor from $project" >&2
    echo "hint: put its four .gz files into $target yourself" >&2
    exit 2
fi
mkdir "$part/set"
for file in $files; do
    wanted=$(grep "$file\$" "$sums" | cut -d ' ' -f 1)
    found=$(gzip -dc "$source_folder/$file.gz" | sha256sum | cut -d ' ' -f 1)
    [ "$wanted" = "$found" ] || { echo "error: $file: sha256 $found, expected $wanted" >&2; exit 2; }
    cp "$source_folder/$file.gz" "$part/set/"
done
chmod 755 "$part/set"
mv "$part/set" "$target"
echo "fashion-mnist: ready in ./$target"
