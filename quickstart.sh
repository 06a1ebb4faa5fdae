#!/usr/bin/env bash
# From a clean clone to a served model on Debian 12, x86-64:
#   ./quickstart.sh [--no-serve] [--prefix DIR] [-- arguments of `deepinfer serve`]
# Installs the Debian packages that are missing (with sudo when not root), builds the release, installs it to
# /usr/local (root) or ~/.local, fetches the default model into the cache folder and serves it on 127.0.0.1:8000.
# What is there already is skipped: a second run needs no network.
# With an NVIDIA card it builds for that card, and installs a CUDA toolkit into the cache folder where there is none;
# DEEPINFER_CUDA=OFF before the command leaves the card alone.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

usage() { sed -n '2,8s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; }
serve=1
prefix=/usr/local
[ "$(id -u)" = 0 ] || prefix=$HOME/.local
while [ $# -gt 0 ]; do
  case $1 in
    --no-serve) serve= ;;
    --prefix)
      prefix=${2:?--prefix: a folder is missing}
      shift
      ;;
    --prefix=*) prefix=${1#--prefix=} ;;
    -h | --help)
      usage
      exit 0
      ;;
    --)
      shift
      break
      ;;
    *)
      printf 'quickstart.sh: unknown argument %s\n' "$1" >&2
      usage >&2
      exit 2
      ;;
  esac
  shift
done
# shellcheck source=tools/common.sh
. "$root/tools/common.sh"
[ "$(uname -m)" = x86_64 ] || die "this is $(uname -m); x86-64 is what is built and tested"

model=${DEEPINFER_CACHE_DIR:-${XDG_CACHE_HOME:-$HOME/.cache}/deepinfer}/models/SmolLM2-135M-Instruct.Q4_1.gguf
mapfile -t missing < <(missing_packages build)
card=
architectures=
if [ "${DEEPINFER_CUDA:-}" != OFF ] && architectures=$("$root/tools/gpu_architectures.sh"); then card=1; fi
toolkit=$("$root/tools/cuda_toolkit.sh" --find || true)
needs=()
[ ${#missing[@]} = 0 ] || needs+=("${#missing[@]} Debian packages: up to 1.2 GB of disk, about 1 minute")
[ -z "$card" ] || [ -n "$toolkit" ] || needs+=("a CUDA toolkit: 815 MB to download, 1.3 GB on disk, in the cache folder")
[ -z "$card" ] || [ -f "$root/.cache/flashinfer/complete" ] || needs+=("headers of attention kernels: 62 MB to download")
[ -f "$root/build/release/build.ninja" ] || needs+=("the build: 50 MB, 3 to 4 minutes on 2 cores${card:+, with CUDA about 10}")
[ -f "$model" ] || needs+=("the default model: 98 MB to download, the same on disk")
if [ ${#needs[@]} -gt 0 ]; then
  echo 'DeepInfer needs, once:'
  printf '  - %s\n' "${needs[@]}"
  printf 'Free here: %s. The details go to %s\n' "$(df -h --output=avail "$root" | tail -n 1 | tr -d ' ')" "$log"
fi

step() {  # NUMBER TEXT
  printf '[%s/4] %s\n' "$1" "$2"
  begin=$(now)
}
finished() { printf '      done, %d s\n' "$(($(now) - begin))"; }

if [ ${#missing[@]} -gt 0 ]; then
  step 1 "installing ${#missing[@]} packages"
  install_packages build
  finished
else
  step 1 'packages: all there'
fi

configured=
[ ! -f "$root/build/release/build.ninja" ] || configured=1
options=()
[ -n "$configured" ] || options=(-DDEEPINFER_BUILD_TESTS=OFF -DDEEPINFER_CUDA=OFF)
if [ -n "$card" ]; then
  [ -n "$toolkit" ] || echo '      an NVIDIA card is here: installing a CUDA toolkit'
  toolkit=$("$root/tools/cuda_toolkit.sh") || die 'no CUDA toolkit. To build for the CPU alone: DEEPINFER_CUDA=OFF ./quickstart.sh'
  "$root/tools/flashinfer.sh" >/dev/null || echo '      without FlashInfer: slower attention on the card'
  cuda=(-DDEEPINFER_CUDA=ON "-DDEEPINFER_CUDA_HOME=$toolkit")
  [ -z "$architectures" ] || cuda+=("-DDEEPINFER_CUDA_ARCHITECTURES=$architectures")
  # What cmake remembers may be from before the card or the toolkit came, or from a time when it failed.
  if [ -z "$configured" ] || ! grep -qxF "DEEPINFER_CUDA_HOME:PATH=$toolkit" "$root/build/release/CMakeCache.txt"; then
    options+=("${cuda[@]}")
  fi
fi
step 2 "building the release${card:+ with CUDA for ${architectures:-all cards}}"
build_preset release deepinfer "${options[@]}"
finished

step 3 "installing to $prefix"
run_logged 'the installation' cmake --install "$root/build/release" --prefix "$prefix" ||
  die "cannot install to $prefix: choose another folder with --prefix"
# shellcheck disable=SC2016
case ":$PATH:" in
  *":$prefix/bin:"*) ;;
  *) printf '      %s/bin is not on PATH. To call deepinfer by its name: export PATH="%s/bin:$PATH"\n' "$prefix" "$prefix" ;;
esac

if [ -f "$model" ]; then
  step 4 'the default model: there already'
else
  step 4 'fetching the default model'
  "$root/tools/fetch_default_model.sh"
  finished
fi

if [ -z "$serve" ]; then
  echo "Ready: $prefix/bin/deepinfer serve"
  exit 0
fi
exec "$prefix/bin/deepinfer" serve "$@"
