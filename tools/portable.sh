#!/usr/bin/env bash
# Makes a folder that can be moved and starts on a bare Debian 12 or Ubuntu 24.04:
#   portable.sh [--cuda ARCHITECTURES|OFF] [--with-card-tests] [FOLDER]        FOLDER: default dist/deepinfer
#   bin/deepinfer  lib/ (the shared libraries besides glibc's)  share/deepinfer/  licences/ (of those libraries)
# --cuda: the cards that it has code for ("90a", "89;120f"); left out: all, where a CUDA toolkit is found.
# --with-card-tests: tests/ besides, the programs that bench/gpu/verify.sh runs on a card.
# It starts the program out of the folder, with nothing of this machine on the library path, before it says so.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source=tools/common.sh
. "$root/tools/common.sh"
out=$root/dist/deepinfer
limit_mib=64
groups=(build)
targets=deepinfer
options=()
card_tests=
while [ $# -gt 0 ]; do
  case $1 in
    -h | --help)
      sed -n '2,7s/^# \{0,1\}//p' "$0"
      exit 0
      ;;
    --cuda)
      case ${2:?--cuda: expected architectures or OFF} in
        OFF) options+=(-DDEEPINFER_CUDA=OFF) ;;
        *) options+=(-DDEEPINFER_CUDA=ON "-DDEEPINFER_CUDA_ARCHITECTURES=$2") ;;
      esac
      shift
      ;;
    --with-card-tests) card_tests=1 ;;
    -*) die "unknown option $1, expected --cuda, --with-card-tests or a folder" 2 ;;
    *) out=$(realpath -m "$1") ;;
  esac
  shift
done
if [ -n "$card_tests" ]; then
  groups+=(test)
  targets="deepinfer card_tests cuda_linear_bench"
  options+=(-DDEEPINFER_BUILD_TESTS=ON -DDEEPINFER_BUILD_BENCH=ON)
fi

install_packages "${groups[@]}"
build_preset portable "$targets" "${options[@]}"
rm -rf "$out"
mkdir -p "$out/lib" "$out/licences"
run_logged 'the installation' cmake --install "$root/build/portable" --prefix "$out" --strip
rm -rf "$out/include" "$out/share/deepinfer/cuda_library_dirs"

# glibc's parts must fit the kernel and loader of the machine where the program starts; all others travel along.
programs=("$out/bin/deepinfer")
if [ -n "$card_tests" ]; then
  mkdir "$out/tests"
  for program in "$root"/build/portable/tests/card/*_card_test "$root/build/portable/tests/card/compare_devices" \
    "$root/build/portable/bench/cuda_linear_bench"; do
    programs+=("$out/tests/$(basename "$program")")
    llvm-strip-19 -o "$out/tests/$(basename "$program")" "$program"
  done
  [ ! -f "$root/build/portable/tests/card/libdi_graph_gaps.so" ] ||
    llvm-strip-19 -o "$out/tests/libdi_graph_gaps.so" "$root/build/portable/tests/card/libdi_graph_gaps.so"
fi
# libcurl is loaded when a model is fetched, so the program does not name it; beside the program it is found first.
curl=$(PATH=$PATH:/usr/sbin:/sbin ldconfig -p | awk '$1 == "libcurl.so.4" && /x86-64/ { print $NF; exit }')
[ -n "$curl" ] || die 'libcurl.so.4: not found'
glibc='^(ld-linux-x86-64|libc|libm|libdl|libpthread|librt|libresolv)\.so'
while read -r name _ path _; do
  [[ $name =~ $glibc ]] && continue
  [ -f "$path" ] || die "$name: not found (ldd says: $path)"
  cp -L "$path" "$out/lib/$name"
  # By the file's name: dpkg may know it in /lib while it is found in /usr/lib.
  owner=$(dpkg-query -S "*/$(basename "$(realpath "$path")")" 2>/dev/null | head -n 1 | cut -d: -f1) || true
  [ -z "$owner" ] || cp "/usr/share/doc/$owner/copyright" "$out/licences/$owner.txt"
done < <({ for file in "${programs[@]}" "$curl"; do ldd "$file"; done; echo "libcurl.so.4 => $curl ()"; } | grep '=> ' | sort -u)
[ ! -f "$root/.cache/flashinfer/LICENSE" ] || cp "$root/.cache/flashinfer/LICENSE" "$out/licences/flashinfer.txt"

# The preset links with RPATH, not RUNPATH: it also holds for the libraries that libraries name.
version=$(env -i "$out/bin/deepinfer" --version)
outside=$(for program in "${programs[@]}"; do env -i LD_TRACE_LOADED_OBJECTS=1 "$program"; done |
  grep '=> ' | grep -v "=> $out/" | awk '{print $1}' | grep -vE "$glibc" || true)
# Nobody listens there: the fetch fails, but only after libcurl and all that it needs are loaded.
fetch=$(env -i HOME="$out" HF_ENDPOINT=http://127.0.0.1:9 LD_DEBUG=libs "$out/bin/deepinfer" pull a/b 2>&1 || true)
grep -qF "calling init: $out/lib/libcurl.so.4" <<<"$fetch" || die "fetching a model does not load lib/libcurl.so.4"
outside+=$(sed -n 's/.*calling init: //p' <<<"$fetch" | grep -v "^$out/" | xargs -rn 1 basename | grep -vE "$glibc" || true)
[ -z "$outside" ] || die "these still come from the machine: $outside"
size=$(du -sm --exclude "$out/tests" "$out" | cut -f1)
[ "$size" -le $limit_mib ] || die "$out: $size MiB, expected at most $limit_mib"
echo "$out: $size MiB, $version"
