#!/usr/bin/env bash
# The checks of fleets, with vllm-router and Ray as they come from their packages, against the release program:
#   run.sh [router|ray]...     both without a name; two cores, five minutes, 0.7 GB of disk
# DEEPINFER_BIN and DEEPINFER_TEST_DATA as in test.sh. Each has an environment of its own in .cache.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
cd "$root"
export DEEPINFER_BIN=${DEEPINFER_BIN:-$root/build/release/src/cli/deepinfer}
export DEEPINFER_TEST_DATA=${DEEPINFER_TEST_DATA:-$root/.cache/test-data}
failed=()
[ $# -gt 0 ] || set -- router ray
for name in "$@"; do
  case $name in router | ray) ;; *)
    echo "run.sh: unknown check $name, expected router or ray" >&2
    exit 2
    ;;
  esac
  venv=$root/.cache/fleet-$name
  if ! cmp -s "tests/deploy/$name.txt" "$venv/installed.txt"; then
    python3 -m venv "$venv"
    "$venv/bin/python" -m pip install -q --disable-pip-version-check -r "tests/deploy/$name.txt"
    cp "tests/deploy/$name.txt" "$venv/installed.txt"
  fi
  echo "=== $name"
  VLLM_ROUTER=$venv/bin/vllm-router "$venv/bin/python" "tests/deploy/${name}_check.py" || failed+=("$name")
done
[ ${#failed[@]} = 0 ] || { printf 'failed: %s\n' "${failed[@]}"; exit 1; }
