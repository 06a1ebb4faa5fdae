#!/usr/bin/env bash
# Installs what the tests need and runs all of them:
#   ./test.sh              every stage
#   ./test.sh NAME...      only these: style, debug, cuda, release, tsan, fuzz, python (later ones may need earlier builds)
# DEEPINFER_FUZZ_SECONDS: how long each target is fuzzed (15).
# The last line is the sum of what the tests reported; the exit code is 0 only if nothing failed.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
cd "$root"
# shellcheck source=tools/common.sh
. tools/common.sh

case "${1:-}" in
  -h | --help)
    sed -n '2,6s/^# \{0,1\}//p' "$0"
    exit 0
    ;;
esac
wanted=" ${*:-style debug cuda release tsan fuzz python} "
for name in $wanted; do
  case $name in
    style | debug | cuda | release | tsan | fuzz | python) ;;
    *) die "unknown stage $name, expected: style, debug, cuda, release, tsan, fuzz, python" 2 ;;
  esac
done

results=$root/build/test-results
rm -rf "$results"
mkdir -p "$results"
stages=()  # kind:name=status, for the sum
begin=$(now)
export DEEPINFER_TEST_DATA=${DEEPINFER_TEST_DATA:-$root/.cache/test-data}
export DEEPINFER_BUILD_DIR=$root/build/release
export DEEPINFER_BIN=$DEEPINFER_BUILD_DIR/src/cli/deepinfer
# A checkout may belong to somebody else than who tests it, which git refuses without this.
export GIT_CONFIG_COUNT=1 GIT_CONFIG_KEY_0=safe.directory GIT_CONFIG_VALUE_0=$root
export CTEST_PARALLEL_LEVEL=${CTEST_PARALLEL_LEVEL:-$(nproc)}

# stage KIND NAME command...: runs it, prints its seconds, remembers whether it failed. KIND: see test_summary.py.
stage() {
  local kind=$1 name=$2 start status=0
  shift 2
  start=$(now)
  printf '=== %s\n' "$name"
  "$@" || status=$?
  printf '=== %s: %s, %d s\n' "$name" "$([ "$status" = 0 ] && echo ok || echo FAILED)" "$(($(now) - start))"
  stages+=("$kind:$name=$status")
  return "$status"
}

check_format() {
  local files
  mapfile -t files < <(git ls-files '*.h' '*.cpp' '*.cu' '*.cuh')
  [ ${#files[@]} -gt 0 ] || return 1
  clang-format-19 --dry-run -Werror "${files[@]}" && echo "${#files[@]} files are formatted"
}

# tests SUITE PRESET [FOLDER]: ctest in a build folder; its report and GoogleTest's go to build/test-results/SUITE.
tests() {
  local status=0
  mkdir -p "$results/$1"
  rm -rf "build/$2/gtest"
  ctest --test-dir "build/$2/${3:-}" --output-on-failure --no-tests=error --timeout 900 \
    --output-junit "$results/$1/ctest.xml" || status=$?
  [ ! -d "build/$2/gtest" ] || mv "build/$2/gtest" "$results/$1/gtest"
  return "$status"
}

python_tools() {
  if [ ! -x .venv/bin/python ]; then python3 -m venv .venv || return; fi
  if ! cmp -s tests/requirements.txt .venv/installed.txt; then
    .venv/bin/python -m pip install -q --disable-pip-version-check -r tests/requirements.txt || return
    cp tests/requirements.txt .venv/installed.txt
  fi
  tools/promtool.sh >/dev/null
}

python_tests() {
  mkdir -p "$results/python"
  .venv/bin/python -m pytest -q -rs --timeout 600 -p no:cacheprovider --junit-xml "$results/python/pytest.xml" tests
}

documentation() {  # a broken link or anchor is an error; not with --quiet, which hides it
  NO_MKDOCS_2_WARNING=1 .venv/bin/mkdocs build --clean && echo "build/site: $(find build/site -name '*.html' | wc -l) pages"
}

run_style() {
  stage check format check_format || true
  stage check 'include rules, self-test' tools/check_includes.py --self-test || true
  stage check 'include rules' tools/check_includes.py || true
  stage check 'what does not belong' tools/check_text.sh || true
}

run_debug() {  # AddressSanitizer, UndefinedBehaviorSanitizer
  stage step 'build cpu-debug' build_preset cpu-debug all -DDEEPINFER_BUILD_TESTS=ON || return 0
  stage suite cpu-debug tests cpu-debug cpu-debug || true
}

# The CUDA toolkit and FlashInfer's headers: for the release, and for the emulated tests, which need CUDA's types.
cuda_headers() {
  DEEPINFER_CUDA_HOME=$(tools/cuda_toolkit.sh) || return
  export DEEPINFER_CUDA_HOME
  tools/flashinfer.sh
}

release_options=(-DDEEPINFER_BUILD_TESTS=ON -DDEEPINFER_CUDA=ON -DDEEPINFER_EMULATED_TESTS=OFF)

run_cuda() {  # device code for every card, linked; nothing of it runs here
  stage step 'build cuda' build_preset release deepinfer "${release_options[@]}" || return 0
  stage check 'cards of the program' tools/cuda_objects.py build/release --expect 80 89 90 120 ptx80 || true
}

run_release() {
  stage step 'build release' build_preset release all "${release_options[@]}" || return 0
  stage suite release tests release release || true
}

run_tsan() {  # ThreadSanitizer, where threads meet
  stage step 'build cpu-tsan' build_preset cpu-tsan 'tests/unit/base/all tests/unit/comm/all tests/unit/engine/all tests/unit/server/all' \
    -DDEEPINFER_BUILD_TESTS=ON || return 0
  for folder in base comm engine server; do
    stage suite "cpu-tsan $folder" tests "cpu-tsan $folder" cpu-tsan "tests/unit/$folder" || true
  done
}

run_fuzz() {  # for a bounded time; what was found before is replayed by the other stages
  stage step 'build fuzz' build_preset fuzz fuzz/all || return 0
  stage check "fuzzing, ${DEEPINFER_FUZZ_SECONDS:-15} s a target" tools/fuzz.sh "${DEEPINFER_FUZZ_SECONDS:-15}" || true
}

run_python() {
  stage step 'python tools' python_tools || return 0
  stage check 'documentation site' documentation || true
  stage step 'build python' build_preset release '_core _core_stub fake_nvml' "${release_options[@]}" -DDEEPINFER_BUILD_PYTHON=ON \
    "-DPython_EXECUTABLE=$root/.venv/bin/python" || return 0
  stage suite python python_tests || true
}

if ! stage step packages install_packages build test || ! stage step 'test data' tools/fetch_test_data.sh "$DEEPINFER_TEST_DATA" ||
  ! stage step 'CUDA toolkit and headers' cuda_headers; then
  python3 tools/test_summary.py "$results" "${stages[@]}"
  exit 1
fi
for name in style debug cuda release tsan fuzz python; do
  case $wanted in *" $name "*) "run_$name" ;; esac
done
printf '=== all: %d s\n' "$(($(now) - begin))"
python3 tools/test_summary.py "$results" "${stages[@]}"
