#!/usr/bin/env bash
# Makes a folder that can be moved and starts on a bare Debian 12: portable.sh [FOLDER]   (default: dist/deepinfer)
#   bin/deepinfer  lib/ (the shared libraries besides glibc's)  share/deepinfer/  licences/ (of those libraries)
# It starts the program out of the folder, with nothing of this machine on the library path, before it says so.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source=tools/common.sh
. "$root/tools/common.sh"
out=$(realpath -m "${1:-$root/dist/deepinfer}")
limit_mib=64

install_packages build
build_preset portable deepinfer
rm -rf "$out"
mkdir -p "$out/lib" "$out/licences"
run_logged 'the installation' cmake --install "$root/build/portable" --prefix "$out" --strip
rm -rf "$out/include" "$out/share/deepinfer/cuda_library_dirs"

# glibc's parts must fit the kernel and loader of the machine where the program starts; all others travel along.
glibc='^(ld-linux-x86-64|libc|libm|libdl|libpthread|librt|libresolv)\.so'
while read -r name _ path _; do
  [[ $name =~ $glibc ]] && continue
  [ -f "$path" ] || die "$name: not found (ldd says: $path)"
  cp -L "$path" "$out/lib/$name"
  # By the file's name: dpkg may know it in /lib while it is found in /usr/lib.
  owner=$(dpkg-query -S "*/$(basename "$(realpath "$path")")" 2>/dev/null | head -n 1 | cut -d: -f1) || true
  [ -z "$owner" ] || cp "/usr/share/doc/$owner/copyright" "$out/licences/$owner.txt"
done < <(ldd "$out/bin/deepinfer" | grep '=> ')

# The preset links with RPATH, not RUNPATH: it also holds for the libraries that libraries name.
version=$(env -i "$out/bin/deepinfer" --version)
outside=$(env -i LD_TRACE_LOADED_OBJECTS=1 "$out/bin/deepinfer" |
  grep '=> ' | grep -v "=> $out/" | awk '{print $1}' | grep -vE "$glibc" || true)
[ -z "$outside" ] || die "these still come from the machine: $outside"
size=$(du -sm "$out" | cut -f1)
[ "$size" -le $limit_mib ] || die "$out: $size MiB, expected at most $limit_mib"
echo "$out: $size MiB, $version"
