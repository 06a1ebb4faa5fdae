#!/usr/bin/env bash
# Makes a wheel that installs on Debian 12, Ubuntu 24.04 and newer, with the shared libraries that it needs inside:
#   wheel.sh [--cuda ARCHITECTURES|ON|OFF] [--python PYTHON] [FOLDER]      FOLDER: default dist
#   wheel.sh --repair WHEEL FOLDER                                        only the second half, of a wheel that was built
# --cuda: the cards that it has code for ("90a", "89;120f"), ON: all [OFF]. --python: the interpreter that it is for [python3].
# CUDA's own libraries are never inside: they are loaded when the program runs, from the system or from NVIDIA's packages
# (pip install 'deepinfer[cuda]'). It installs the wheel into an environment of its own, and runs it, before it says so.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source=tools/common.sh
. "$root/tools/common.sh"
platform=manylinux_2_36_x86_64
python=python3
cuda=OFF
repair=
while [ $# -gt 0 ]; do
  case $1 in
    -h | --help)
      sed -n '2,8s/^# \{0,1\}//p' "$0"
      exit 0
      ;;
    --cuda) cuda=${2:?--cuda: expected architectures, ON or OFF} && shift ;;
    --python) python=${2:?--python: expected an interpreter} && shift ;;
    --repair) repair=$(realpath "${2:?--repair: expected a wheel}") && shift ;;
    -*) die "unknown option $1, expected --cuda, --python, --repair or a folder" 2 ;;
    *) out=$(realpath -m "$1") ;;
  esac
  shift
done
out=${out:-$root/dist}
work=$root/build/wheel
rm -rf "$work"
mkdir -p "$work/built" "$work/repaired" "$out"

venv=$root/.cache/wheel-tools
if ! cmp -s "$root/tools/wheel_requirements.txt" "$venv/installed.txt"; then
  python3 -m venv "$venv"
  run_logged 'pip install' "$venv/bin/python" -m pip install -q --disable-pip-version-check -r "$root/tools/wheel_requirements.txt"
  cp "$root/tools/wheel_requirements.txt" "$venv/installed.txt"
fi

build() {
  local settings=(-C cmake.define.DEEPINFER_BUNDLE=ON)
  case $cuda in
    ON | OFF) settings+=(-C "cmake.define.DEEPINFER_CUDA=$cuda") ;;
    *) settings+=(-C cmake.define.DEEPINFER_CUDA=ON -C "cmake.define.DEEPINFER_CUDA_ARCHITECTURES=$cuda") ;;
  esac
  "$python" -m venv "$work/builder"
  run_logged 'the build of the wheel' "$work/builder/bin/python" -m pip wheel --disable-pip-version-check --no-deps \
    "${settings[@]}" -w "$work/built" "$root"
  repair=$(echo "$work"/built/*.whl)
}

# Puts the licences of the libraries that auditwheel copied in beside our own.
add_licences() {  # folder of the unpacked wheel
  local file owner name to
  to=$(echo "$1"/*.dist-info)/licenses/libraries
  mkdir -p "$to"
  for file in "$1"/deepinfer.libs/* "$1"/deepinfer/lib/*; do
    # libfmt-0a1b2c3d.so.9.1.0 was libfmt.so.9.1.0. dpkg may know it in /lib while it is found in /usr/lib, and a few stand beside
    # the architecture's folder.
    name=$(basename "$file" | sed -E 's/-[0-9a-f]{8}\././')
    owner=$(dpkg-query -S "/usr/lib/x86_64-linux-gnu/$name" "/lib/x86_64-linux-gnu/$name" "/usr/lib/$name" 2>/dev/null | head -n 1 | cut -d: -f1) || true
    [ -n "$owner" ] || die "$name: no package of this machine has it, so its licence is unknown"
    cp "/usr/share/doc/$owner/copyright" "$to/$owner.txt"
  done
  [ "$cuda" = OFF ] || [ ! -f "$root/.cache/flashinfer/LICENSE" ] || cp "$root/.cache/flashinfer/LICENSE" "$to/flashinfer.txt"
}

[ -n "$repair" ] || build
export PATH=$venv/bin:$PATH
run_logged 'auditwheel' auditwheel repair --plat "$platform" --only-plat -w "$work/repaired" "$repair"
run_logged 'wheel unpack' wheel unpack -d "$work/open" "$work"/repaired/*.whl
add_licences "$work"/open/*
# Where this machine has its CUDA is nobody else's business.
rm -f "$work"/open/*/deepinfer/share/deepinfer/cuda_library_dirs
rm -f "$work"/repaired/*.whl
run_logged 'wheel pack' wheel pack -d "$work/repaired" "$work"/open/*
wheel=$(echo "$work"/repaired/*.whl)

limit_mb=15
[ "$cuda" = OFF ] || limit_mb=150
bytes=$(stat -c %s "$wheel")
[ "$bytes" -le $((limit_mb * 1000000)) ] || die "$wheel: $((bytes / 1000000)) MB, expected at most $limit_mb"

"$python" -m venv "$work/try"
run_logged 'pip install of the wheel' "$work/try/bin/python" -m pip install -q --disable-pip-version-check --no-index "$wheel"
cd "$work"
version=$("$work/try/bin/deepinfer" --version)
"$work/try/bin/deepinfer" config --config configs/nvidia_5090.yaml >/dev/null
# Nobody listens there: the fetch fails, but only after libcurl and all that it needs are loaded.
fetch=$(HF_ENDPOINT=http://127.0.0.1:9 LD_DEBUG=libs "$work/try/bin/deepinfer" pull a/b 2>&1 || true)
grep -qF "calling init: $work/try/lib/" <<<"$(grep libcurl <<<"$fetch")" || die 'fetching a model does not load the libcurl of the wheel'
# glibc's parts and the compiler's, which the platform's name promises, and Python's own.
system='^(ld-linux-x86-64|libc|libm|libdl|libpthread|librt|libresolv|libutil|libstdc\+\+|libgcc_s|libz|libexpat|libpython3\.[0-9]+)\.so'
outside=$(sed -n 's/.*calling init: //p' <<<"$fetch" | grep -v "^$work/try/" | grep -v '/lib-dynload/' | xargs -rn 1 basename |
  grep -vE "$system" | sort -u || true)
# What Python's own modules need is not ours (libssl of _ssl, libffi of _ctypes).
[ -z "$outside" ] || die "these still come from the machine: $outside"
mv "$wheel" "$out/"
echo "$out/$(basename "$wheel"): $((bytes / 1000000)).$((bytes / 100000 % 10)) MB, $version"
