#!/usr/bin/env bash
# Makes what bench/gpu/verify.sh needs on a machine with a card, in pieces of at most 61 MB, in the folder .verify:
#   pack.sh [ARCHITECTURES]         default 90a
#   bundle.tar.xz    the portable folder with the programs for a card, and the commit
#   model.0 model.1  the default model in two pieces
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
cd "$root"
architectures=${1:-90a}
model=${DEEPINFER_CACHE_DIR:-${XDG_CACHE_HOME:-$HOME/.cache}/deepinfer}/models/SmolLM2-135M-Instruct.Q4_1.gguf

tools/flashinfer.sh
tools/portable.sh --cuda "$architectures" --with-card-tests dist/verify
commit=$(git rev-parse --short=12 HEAD)
[ -z "$(git status --porcelain)" ] || commit=$commit-changed
echo "$commit" >dist/verify/COMMIT
tools/fetch_default_model.sh
rm -rf .verify
mkdir .verify
tar -C dist -cf - verify | xz -T0 -3 >.verify/bundle.part
mv .verify/bundle.part .verify/bundle.tar.xz
split -b 61000000 -d -a 1 "$model" .verify/model.
ls -l .verify
