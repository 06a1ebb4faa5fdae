#!/usr/bin/env bash
# Prints the path of promtool, Prometheus' own checker. Out of PATH, else out of Debian's package prometheus, which is
# unpacked into .cache and not installed: installing it would start a server.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
if command -v promtool; then exit 0; fi
folder=$root/.cache/promtool
if [ ! -x "$folder/usr/bin/promtool" ]; then
  mkdir -p "$root/.cache"
  work=$(mktemp -d "$root/.cache/promtool.XXXXXX")
  trap 'rm -rf "$work"' EXIT
  chmod 755 "$work"
  (cd "$work" && apt-get download -q prometheus >&2 && dpkg-deb -x prometheus_*.deb out)
  rm -rf "$folder"
  mv "$work/out" "$folder"
fi
echo "$folder/usr/bin/promtool"
