#!/usr/bin/env bash
# Prints the cargo flags for a build with MPI where Open MPI's mpicc and libclang (which reads its header) are found;
# says on stderr what is missing where they are not.
set -u
flags="--features simclr-cli/mpi"

has_libclang() {
  [ -n "${LIBCLANG_PATH:-}" ] && return 0
  command -v llvm-config >/dev/null && ls "$(llvm-config --libdir)"/libclang.so* >/dev/null 2>&1 && return 0
  ls /usr/lib/llvm-*/lib/libclang.so* /usr/lib/llvm-*/lib/libclang-[0-9]*.so* >/dev/null 2>&1 && return 0
  PATH="$PATH:/sbin" ldconfig -p 2>/dev/null | grep -q 'libclang\(-[0-9.]*\)\?\.so'
}

missing=()
command -v "${MPICC:-mpicc}" >/dev/null || missing+=("mpicc (Debian: openmpi-bin libopenmpi-dev)")
has_libclang || missing+=("libclang (Debian: libclang-dev)")
if [ ${#missing[@]} -eq 0 ]; then
  echo "$flags"
else
  printf 'several processes (MPI): off, no %s\n' "$(IFS=,; echo "${missing[*]}" | sed 's/,/, no /g')" >&2
fi
