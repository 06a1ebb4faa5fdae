#!/usr/bin/env bash
# The tests of the Python package with its extension module under AddressSanitizer and UndefinedBehaviorSanitizer:
#   python_sanitized.sh [pytest arguments]      left out: all of tests/python but the types
# It needs what ./test.sh installs (.venv, the test data), and builds into build/cpu-debug.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$root"
# shellcheck source=tools/common.sh
. tools/common.sh
python=${DEEPINFER_PYTHON_EXECUTABLE:-$root/.venv/bin/python}
build_preset cpu-debug '_core fake_nvml' -DDEEPINFER_BUILD_PYTHON=ON "-DPython_EXECUTABLE=$python"

# The interpreter is no sanitized program: the runtime comes first, and libstdc++ with it, whose exceptions it watches.
runtime=$(clang-19 -print-file-name=libclang_rt.asan-x86_64.so)
[ -f "$runtime" ] || runtime=$(clang-19 -print-file-name=libclang_rt.asan.so)
[ -f "$runtime" ] || die "$runtime: not there (Debian: libclang-rt-19-dev)"
stdcxx=$(clang++-19 -print-file-name=libstdc++.so.6)
export DEEPINFER_BUILD_DIR=$root/build/cpu-debug
export DEEPINFER_TEST_DATA=${DEEPINFER_TEST_DATA:-$root/.cache/test-data}
# Python keeps memory until its end on purpose: what leaks is looked for by the tests in C++.
export ASAN_OPTIONS=detect_leaks=0:abort_on_error=1 UBSAN_OPTIONS=print_stacktrace=1:halt_on_error=1
# Python's own allocator would hide what is wrong in its objects.
export PYTHONMALLOC=malloc
[ $# -gt 0 ] || set -- tests/python --ignore tests/python/test_types.py
LD_PRELOAD="$runtime $stdcxx" "$python" -m pytest -q -rs -p no:cacheprovider --timeout 900 "$@"
