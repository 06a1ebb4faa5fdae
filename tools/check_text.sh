#!/usr/bin/env bash
# Looks through the tracked files for what does not belong in a commit: paths of one machine, host names of package
# registries (their users have mirrors), marks of unfinished work, files longer than the style allows.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bad=0

# search WHAT PATTERN [pathspec...]; a pattern is written so that this file does not match it.
search() {
  local what=$1 pattern=$2
  shift 2
  if git grep -nIE "$pattern" -- "$@"; then
    echo "    ^ $what"
    bad=1
  fi
}

search 'a path of one machine' '/root/|/home/[a-z]' . ':!tools/check_text.sh'
search 'a registry host: name the package instead' 'py[p]i\.org|pythonhost[e]d|deb\.d[e]bian|npm[j]s\.' .
search 'a mark of unfinished work' '\b(T[O]DO|F[I]XME|X[X]X|H[A]CK)\b' .
search 'std::regex: use a scanner or PCRE2' 'std::[r]egex' '*.cpp' '*.h'

while IFS= read -r file; do
  limit=800
  case $file in src/backend/*) limit=1000 ;; esac
  lines=$(wc -l <"$file")
  if [ "$lines" -gt $limit ]; then
    echo "$file: $lines lines, expected at most $limit: split it by what it does"
    bad=1
  fi
done < <(git ls-files '*.h' '*.cpp' '*.cu' '*.cuh' '*.py' '*.sh')

lines=$(if [ -f docs/ARCHITECTURE.md ]; then wc -l <docs/ARCHITECTURE.md; else echo 0; fi)
if [ "$lines" -gt 200 ]; then
  echo "docs/ARCHITECTURE.md: $lines lines, expected at most 200"
  bad=1
fi
[ "$bad" = 0 ] && echo "$(git ls-files | wc -l) tracked files: nothing that does not belong"
exit "$bad"
