#!/usr/bin/env bash
# Checks and measures DeepInfer on a machine with an NVIDIA card, without a network, in at most 9 minutes:
#   verify.sh [ops] [model] [bench]     all three when none is named
#     ops     every test of the CUDA kernels on the card, and NCCL with one rank in graphs; a part under compute-sanitizer
#     model   the default model on the CPU and on the card, token by token
#     bench   speed in the shape of Llama-3.1-8B beside PyTorch's kernels on the same card
#   verify.sh take FOLDER               stores pieces made by pack.sh, for machines that are given them one by one
# What it runs is the portable folder of pack.sh; without one it is built here, where tools/portable.sh can.
# Writes <gpu>-<commit>.json and .md to $OUT, else to bench/results, with what was reached also when a part was cut off.
# VERIFY_DIR (/tmp/deepinfer-verify) holds the pieces and the logs.
set -uo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
work=${VERIFY_DIR:-/tmp/deepinfer-verify}
out=${OUT:-$root/bench/results}
mkdir -p "$work/parts" "$out"
failed=()

die() {
  printf 'verify.sh: %s\n' "$1" >&2
  exit 2
}

take() {
  local name
  for name in bundle.tar.xz model.0 model.1; do
    [ ! -f "$1/$name" ] || cp "$1/$name" "$work/$name" || die "$work: no room for $name"
  done
  if [ -f "$work/model.0" ] && [ -f "$work/model.1" ]; then
    cat "$work/model.0" "$work/model.1" >"$work/SmolLM2-135M-Instruct.Q4_1.gguf" && rm "$work"/model.[01]
  fi
  if [ -f "$work/bundle.tar.xz" ]; then
    rm -rf "$work/verify"
    tar -C "$work" -xJf "$work/bundle.tar.xz" && rm "$work/bundle.tar.xz"
  fi
  ls -l "$work"
}

parts=()
while [ $# -gt 0 ]; do
  case $1 in
    -h | --help)
      sed -n '2,10s/^# \{0,1\}//p' "$0"
      exit 0
      ;;
    take)
      take "${2:?take: a folder is missing}"
      exit
      ;;
    ops | model | bench) parts+=("$1") ;;
    *) die "unknown part $1, expected ops, model, bench or take" ;;
  esac
  shift
done
[ ${#parts[@]} -gt 0 ] || parts=(ops model bench)
[ ! -d "$root/.verify" ] || take "$root/.verify"

bundle=$work/verify
if [ ! -x "$bundle/bin/deepinfer" ]; then
  echo 'no portable folder: building one'
  "$root/tools/portable.sh" --with-card-tests "$bundle" ||
    die 'no portable folder, and it cannot be built here: make the pieces elsewhere with bench/gpu/pack.sh'
  git -C "$root" rev-parse --short=12 HEAD >"$bundle/COMMIT"
fi
model=$work/SmolLM2-135M-Instruct.Q4_1.gguf
[ -f "$model" ] || model=${DEEPINFER_CACHE_DIR:-$HOME/.cache/deepinfer}/models/SmolLM2-135M-Instruct.Q4_1.gguf

# cuBLASLt and CUPTI: the toolkit's, else those of PyTorch's packages.
if [ -z "${DEEPINFER_CUDA_LIB_DIR:-}" ]; then
  places=(/usr/local/cuda/lib64 /usr/local/cuda/extras/CUPTI/lib64)
  while read -r place; do places+=("$place"); done < <(python3 - <<'PY' 2>/dev/null
import glob, sysconfig
for name in ("cu13/lib", "cublas/lib", "cuda_cupti/lib", "nccl/lib"):
    for path in glob.glob(f"{sysconfig.get_path('purelib')}/nvidia/{name}"):
        print(path)
PY
  )
  for place in "${places[@]}"; do
    [ ! -d "$place" ] || DEEPINFER_CUDA_LIB_DIR=${DEEPINFER_CUDA_LIB_DIR:+$DEEPINFER_CUDA_LIB_DIR:}$place
  done
  export DEEPINFER_CUDA_LIB_DIR
fi
export DEEPINFER_CACHE_DIR=$work/cache DI_TEST_SOURCE=$root
"$bundle/bin/deepinfer" gpu-info --json >"$work/parts/gpu-info.json" || die 'the program does not start here'
python3 -c 'import json, sys; info = json.load(sys.stdin); sys.exit(0 if info["gpu_count"] else info["message"])' \
  <"$work/parts/gpu-info.json" || die 'no card: nothing to verify'

# run NAME SECONDS command...: the output goes to a log, the exit status and the time to parts/NAME.status.
run() {
  local name=$1 limit=$2 status=0 start
  shift 2
  start=$(date +%s.%N)
  timeout -k 5 "$limit" "$@" >"$work/parts/$name.out" 2>"$work/parts/$name.err" || status=$?
  printf '{"status": %d, "seconds": %.1f, "limit": %d}\n' "$status" "$(echo "$(date +%s.%N) $start" | awk '{print $1 - $2}')" \
    "$limit" >"$work/parts/$name.status"
  printf '%-34s %s (%s s)\n' "$name" "$(case $status in 0) echo ok ;; 124 | 137) echo "CUT OFF after $limit s" ;; *) echo "FAILED: $status" ;; esac)" \
    "$(echo "$(date +%s.%N) $start" | awk '{printf "%.1f", $1 - $2}')"
  if [ "$status" != 0 ]; then
    failed+=("$name")
    tail -n 15 "$work/parts/$name.err" "$work/parts/$name.out"
  fi
  return "$status"
}

report() { python3 "$root/bench/gpu/summarize.py" "$work/parts" "$out" "$(cat "$bundle/COMMIT" 2>/dev/null || echo unknown)"; }

part_ops() {
  local program name
  rm -f "$work"/parts/ops-* "$work"/parts/sanitizer-*
  for program in "$bundle"/tests/*_card_test; do
    name=$(basename "$program" _card_test)
    run "ops-$name" 90 "$program" --gtest_brief=1 "--gtest_output=json:$work/parts/ops-$name.json"
  done
  command -v compute-sanitizer >/dev/null || {
    echo 'compute-sanitizer is not there: memcheck and racecheck are left out'
    return
  }
  # All at once: they wait for the tool, not for the card. A share of the tests, for they run many times slower.
  for program in "$bundle"/tests/*_card_test; do
    name=$(basename "$program" _card_test)
    for tool in memcheck racecheck; do
      GTEST_TOTAL_SHARDS=8 GTEST_SHARD_INDEX=1 run "sanitizer-$tool-$name" 100 \
        compute-sanitizer --tool "$tool" --error-exitcode 9 "$program" --gtest_brief=1 &
    done
  done
  wait
  for name in "$work"/parts/sanitizer-*.status; do
    grep -q '"status": 0' "$name" || failed+=("$(basename "$name" .status)")
  done
}

part_model() {
  rm -f "$work"/parts/model-*
  if [ ! -f "$model" ]; then
    echo "the default model is not there ($model): left out"
    failed+=(model-compare)
    return
  fi
  run model-compare 100 "$bundle/tests/compare_devices" "$model"
  run model-answer 40 "$bundle/bin/deepinfer" run --device cuda --model "$model" --temperature 0 --max-tokens 40 \
    'What color is the sky?'
}

part_bench() {
  local save bench=("$bundle/bin/deepinfer" bench --device cuda)
  rm -f "$work"/parts/bench-*
  run bench-torch 130 python3 "$root/bench/gpu/torch_rates.py" "$work/parts/bench-torch.json"
  local sizes=(--max-num-seqs 64 --max-model-len 16384 --max-num-batched-tokens 8192)
  save=$(mktemp -d "$([ "$(df -m --output=avail /dev/shm | tail -n 1)" -gt 24000 ] && echo /dev/shm || echo "$work")/8b.XXXXXX")
  # shellcheck disable=SC2064
  trap "rm -rf '$save'" EXIT
  run bench-8b 110 "${bench[@]}" --random-weights llama-3.1-8b --save "$save/model" --prefill 1024 8192 --decode 128 \
    --batch 1 64 --batch-prompt 1024 --repeat 3 "${sizes[@]}"
  report >/dev/null
  # The first start reads the file and fills the tuning cache; the second is what users see.
  for start in first second; do
    run "bench-start-$start" 45 "${bench[@]}" --model "$save/model" --prefill 0 --decode 0 --batch 0 \
      --repeat 1 "${sizes[@]}" || break
  done
  if [ -f "$bundle/tests/libdi_graph_gaps.so" ]; then
    LD_LIBRARY_PATH=$DEEPINFER_CUDA_LIB_DIR CUDA_INJECTION64_PATH=$bundle/tests/libdi_graph_gaps.so \
      DI_GRAPH_GAPS=$work/parts/bench-gaps.json run bench-gaps-run 60 "${bench[@]}" --model "$save/model" --prefill 0 \
      --decode 128 --batch 64 --batch-prompt 1024 --repeat 1 "${sizes[@]}"
  fi
  rm -rf "$save"
  if [ -x "$bundle/tests/cuda_linear_bench" ]; then
    run bench-linear-bf16 40 "$bundle/tests/cuda_linear_bench" bf16
    run bench-linear-q4_0 40 "$bundle/tests/cuda_linear_bench" q4_0
    run bench-linear-f8 40 "$bundle/tests/cuda_linear_bench" f8
    run bench-linear-f8_blocks 40 "$bundle/tests/cuda_linear_bench" f8_blocks
    run bench-linear-u4 40 "$bundle/tests/cuda_linear_bench" u4
  fi
  [ ! -f "$model" ] || run bench-default 40 "${bench[@]}" --model "$model" --prefill 512 --decode 128 --batch 32 --repeat 3
}

for part in "${parts[@]}"; do
  echo "=== $part"
  "part_$part"
  report >/dev/null
done
echo '=== result'
report
if [ ${#failed[@]} -gt 0 ]; then
  printf 'failed:%s\n' "$(printf ' %s' "${failed[@]}")"
  exit 1
fi
