#!/usr/bin/env bash
# Prints the root of a CUDA toolkit (13 or newer), as cmake will find it; where there is none, installs one first:
#   cuda_toolkit.sh [--find]       --find: installs nothing, exit code 1 when there is none
# What it installs: nvcc, cudart, CCCL, cuBLAS and NCCL out of the Python packages in tools/cuda_requirements.txt
# (815 MB to download, 1.3 GB on disk), into `cuda` of the cache folder. No root is needed. Removing that folder undoes it.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cache=${DEEPINFER_CACHE_DIR:-${XDG_CACHE_HOME:-${HOME:?is not set}/.cache}/deepinfer}
requirements=$root/tools/cuda_requirements.txt

fail() {
  printf 'cuda_toolkit.sh: %s\n' "$1" >&2
  exit 1
}

find_only=
case "${1:-}" in
  '') ;;
  --find) find_only=1 ;;
  -h | --help)
    sed -n '2,5s/^# \{0,1\}//p' "$0"
    exit 0
    ;;
  *) fail "unknown argument $1, expected --find or --help" ;;
esac

# The same places in the same order as cmake/cuda.cmake.
usable() {
  local release
  [ -n "$1" ] && [ -x "$1/bin/nvcc" ] || return 1
  release=$("$1/bin/nvcc" --version 2>/dev/null | sed -n 's/.*release \([0-9]*\)\..*/\1/p')
  [ "${release:-0}" -ge 13 ]
}
# nvcc links what is in lib64; the packages have lib.
name_libraries() { [ -e "$1/lib64" ] || ln -s lib "$1/lib64"; }
on_path=$(command -v nvcc || true)
[ -z "$on_path" ] || on_path=$(dirname "$(dirname "$(realpath "$on_path")")")
for place in "${DEEPINFER_CUDA_HOME:-}" "${CUDA_HOME:-}" "${CUDA_PATH:-}" "$on_path" \
  "${DEEPINFER_TEST_ROOT:-}/usr/local/cuda" "$cache/cuda/nvidia/cu13"; do
  if usable "$place"; then
    [ "$place" != "$cache/cuda/nvidia/cu13" ] || name_libraries "$place"
    printf '%s\n' "$place"
    exit 0
  fi
done
[ -z "$find_only" ] || exit 1

python3 -c 'import ensurepip, venv' 2>/dev/null ||
  fail 'python3 with its venv module is missing: apt-get install python3-venv'
mkdir -p "$cache" || fail "$cache: cannot be made; set DEEPINFER_CACHE_DIR"
free=$(df -m --output=avail "$cache" | tail -n 1 | tr -d ' ')
[ "$free" -ge 2500 ] || fail "$cache: $free MiB free, expected 2500; set DEEPINFER_CACHE_DIR"
work=$(mktemp -d "$cache/cuda.XXXXXX")
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install -q --disable-pip-version-check --no-cache-dir --only-binary=:all: --no-compile \
  --require-hashes --target "$work/out" -r "$requirements" >&2 ||
  fail 'pip could not install the toolkit: is the network there? (pip reads its settings from pip.conf and PIP_*)'
usable "$work/out/nvidia/cu13" || fail 'the packages hold no usable nvcc; nothing was kept'
name_libraries "$work/out/nvidia/cu13"
rm -rf "$cache/cuda"
mv "$work/out" "$cache/cuda"
printf '%s\n' "$cache/cuda/nvidia/cu13"
