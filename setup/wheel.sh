#!/bin/sh
# Makes dist/simclr-VERSION-py3-none-manylinux_GLIBC_x86_64.whl from the release archive of setup/dist.sh, and runs python/tests on it in a
# fresh environment. Needs python3 with pip and venv. hatchling instead of maturin: the package starts the program of the archive, so that
# its libtorch and that of a PyTorch in the same interpreter never meet in one process, and no extension depends on a version of Python.
set -eu
cd "$(dirname "$0")/.."

root=$(pwd -P)
version=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)
name=simclr-$version-x86_64-linux-cpu
[ -e "dist/$name.tar.xz" ] || setup/dist.sh
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
tar --extract --xz --file "dist/$name.tar.xz" --directory "$work"

export SIMCLR_TREE="$work/$name" SOURCE_DATE_EPOCH="${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct)}"
glibc=$(objdump -T "$SIMCLR_TREE/bin/simclr" "$SIMCLR_TREE"/lib/* | grep -o 'GLIBC_[0-9.]*' | sort -Vu | tail -n 1)
SIMCLR_PLATFORM=manylinux_$(echo "${glibc#GLIBC_}" | tr . _)_x86_64
export SIMCLR_PLATFORM
python3 -m pip wheel --quiet --no-deps --wheel-dir dist ./python
wheel=dist/simclr-$version-py3-none-$SIMCLR_PLATFORM.whl

python3 -m venv "$work/environment"
"$work/environment/bin/pip" install --quiet "$wheel[images]"
(cd "$work" && env -u SIMCLR_PROGRAM -u PYTHONPATH -u LD_LIBRARY_PATH "$work/environment/bin/python" -m unittest discover -s "$root/python/tests")
"$work/environment/bin/simclr" --version
echo "wheel: $wheel, $(stat -c %s "$wheel") bytes"
