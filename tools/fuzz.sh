#!/usr/bin/env bash
# Fuzzes every target for a bounded time: tools/fuzz.sh [SECONDS [TARGET...]]   (of each target; without: 15)
# Needs the preset `fuzz` to be built. New inputs stay in build/fuzz/found; one that fails is kept in
# build/fuzz/failed and its end is printed: mend the fault and put the file into fuzz/corpus/TARGET.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$root"
seconds=${1:-15}
shift || true
[[ $seconds =~ ^[1-9][0-9]*$ ]] || { echo "fuzz.sh: got '$seconds', expected seconds of each target" >&2; exit 2; }
targets=("$@")
[ ${#targets[@]} -gt 0 ] || mapfile -t targets < <(cd fuzz && ls fuzz_*.cpp | sed 's/^fuzz_\(.*\)\.cpp$/\1/')

# Rules of memory and time: an input that takes 10 s or 1 GiB is a finding too.
fuzz() {
  local name=$1 found=build/fuzz/found/$1 log=build/fuzz/$1.log status=0
  mkdir -p "$found" build/fuzz/failed
  "build/fuzz/fuzz/fuzz_$name" "$found" "fuzz/corpus/$name" -max_total_time="$seconds" -timeout=10 \
    -rss_limit_mb=1024 -malloc_limit_mb=512 -max_len=4096 -print_final_stats=1 \
    -artifact_prefix="build/fuzz/failed/$name-" >"$log" 2>&1 || status=$?
  if [ "$status" = 0 ]; then
    printf '%-12s %s inputs\n' "$name" "$(sed -n 's/^stat::number_of_executed_units: *//p' "$log")"
  else
    printf '%-12s FAILED (exit status %s), the end of %s:\n' "$name" "$status" "$log"
    tail -n 40 "$log"
  fi
  return "$status"
}
export -f fuzz
export seconds
printf '%s\n' "${targets[@]}" | xargs -P "$(nproc)" -I{} bash -c 'fuzz {}'
