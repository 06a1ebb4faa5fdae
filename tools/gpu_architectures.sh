#!/usr/bin/env bash
# Prints what this machine's NVIDIA cards are called by nvcc, for DEEPINFER_CUDA_ARCHITECTURES: "90a" or "89;120f".
# An empty line: there is a card, but its driver does not say which. Exit code 1: no card that the build can serve.
set -euo pipefail
root=${DEEPINFER_TEST_ROOT:-}  # instead of /, in tests

case "${1:-}" in
  '') ;;
  *)
    sed -n '2,3s/^# \{0,1\}//p' "$0"
    [ "$1" = -h ] || [ "$1" = --help ] || exit 2
    exit 0
    ;;
esac

if capabilities=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader 2>/dev/null); then
  names=()
  while read -r capability; do
    case $capability in
      [89].[0-9] | 1[0-9].[0-9]) ;;
      [1-7].[0-9])
        echo "a card of compute capability $capability: expected 8.0 or newer; it is left out" >&2
        continue
        ;;
      *) continue ;;
    esac
    case $capability in
      9.0) name=90a ;;
      12.*) name=120f ;;
      *) name=${capability//./} ;;
    esac
    [[ " ${names[*]} " = *" $name "* ]] || names+=("$name")
  done <<<"$capabilities"
  [ ${#names[@]} -gt 0 ] || exit 1
  (IFS=';' && echo "${names[*]}")
  exit 0
fi
# No answer from the driver: is there a card at all? (0x03: displays and 3D controllers, not NVIDIA's network cards.)
for device in "$root"/sys/bus/pci/devices/*; do
  if [ "$(cat "$device/vendor" 2>/dev/null)" = 0x10de ] && [[ $(cat "$device/class" 2>/dev/null) = 0x03* ]]; then
    echo
    exit 0
  fi
done
if compgen -G "$root/proc/driver/nvidia/gpus/*" >/dev/null; then
  echo
  exit 0
fi
exit 1
