#!/usr/bin/env bash
# Builds an image of deploy/Dockerfile without a Docker daemon, starts it as a container would be, and stops it:
#   image_here.sh [--target cpu|cuda] [--model FILE] [FOLDER]      FOLDER: where the images lie, default build/image
# Needs root on Debian 12, and its packages buildah and mmdebstrap. Each step of a stage runs in a chroot that has a bare
# Debian and what the Dockerfile put there (buildah's isolation "chroot"); the base image is made by mmdebstrap.
# --model: a GGUF file to serve, default the default model of the cache folder. The server has to come up as the image's
# user, its health check has to fail before that and pass then, it has to answer, and SIGTERM has to end it with 0.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source=tools/common.sh
. "$root/tools/common.sh"
target=cpu
model=${DEEPINFER_CACHE_DIR:-${XDG_CACHE_HOME:-$HOME/.cache}/deepinfer}/models/SmolLM2-135M-Instruct.Q4_1.gguf
folder=$root/build/image
while [ $# -gt 0 ]; do
  case $1 in
    -h | --help)
      sed -n '2,7s/^# \{0,1\}//p' "$0"
      exit 0
      ;;
    --target)
      target=${2:?--target: expected cpu or cuda}
      shift
      ;;
    --model)
      model=$(realpath -e "${2:?--model: a file is missing}")
      shift
      ;;
    -*) die "unknown option $1, expected --target, --model or a folder" 2 ;;
    *) folder=$(realpath -m "$1") ;;
  esac
  shift
done
case $target in cpu | cuda) ;; *) die "--target: got $target, expected cpu or cuda" 2 ;; esac
[ "$(id -u)" = 0 ] || die 'a chroot needs root'
for program in buildah mmdebstrap; do
  command -v "$program" >/dev/null || die "$program is missing: apt-get install --no-install-recommends buildah mmdebstrap"
done
[ -f "$model" ] || die "$model is missing: tools/fetch_default_model.sh fetches it, or give --model"

mkdir -p "$folder"
export BUILDAH_ISOLATION=chroot
images() { buildah --root "$folder/images" --runroot "$folder/run" "$@"; }

if ! images inspect --type image localhost/debian:12-slim >/dev/null 2>&1; then
  mmdebstrap --quiet --variant=minbase bookworm "$folder/debian.tar" /etc/apt/sources.list.d/debian.sources
  base=$(images from scratch)
  images add -q "$base" "$folder/debian.tar" / >/dev/null
  images config --cmd /bin/bash "$base"
  images commit -q --rm "$base" localhost/debian:12-slim >/dev/null
  rm "$folder/debian.tar"
fi
begin=$(now)
# The docker format: OCI's has no place for a health check.
images bud --quiet --layers --format docker --target "$target" --build-arg DEBIAN=localhost/debian:12-slim \
  -f "$root/deploy/Dockerfile" -t "localhost/deepinfer:$target" "$root" >>"$log" 2>&1 || {
  tail -n 60 "$log" >&2
  die "the image was not built; all of it: $log"
}
echo "localhost/deepinfer:$target: built in $(($(now) - begin)) s"

container=$(images from "localhost/deepinfer:$target")
server=
finish() {
  [ -z "$server" ] || kill -9 "$server" 2>/dev/null || true
  images rm "$container" >/dev/null || true
}
trap finish EXIT
# What an image says of itself, as a container runtime reads it.
read_image() { images inspect --type image "localhost/deepinfer:$target" | python3 -c "import json, sys
image = json.load(sys.stdin)['Docker']['config']
$1"; }
mapfile -t health < <(read_image 'print("\n".join(image["Healthcheck"]["Test"][1:]))')
mapfile -t start < <(read_image 'print("\n".join(image["Entrypoint"] + image["Cmd"]))')
user=$(read_image 'print(image["User"])')
port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
inside() { images run -e "DEEPINFER_PORT=$port" "$container" -- "$@"; }

[ "$(inside id -u):$(inside id -g)" = "$user" ] || die "the image does not start as $user"
if inside "${health[@]}" 2>/dev/null; then die 'the health check passes while nothing is served'; fi
size=$(images images --format '{{.Size}}' "localhost/deepinfer:$target")

images run -v "$model:/models/model.gguf:ro" -e "DEEPINFER_PORT=$port" -e DEEPINFER_HOST=127.0.0.1 "$container" -- \
  "${start[@]}" --model /models/model.gguf >"$folder/server.log" 2>&1 &
runner=$!
for _ in $(seq 300); do
  inside "${health[@]}" 2>/dev/null && break
  kill -0 "$runner" 2>/dev/null || { cat "$folder/server.log" >&2; die 'the server ended'; }
  sleep 0.2
done
inside "${health[@]}" || die "the health check does not pass; $folder/server.log"
server=$(pgrep -f "^${start[0]} serve --model /models/model.gguf\$")
[ "$(stat -c %u "/proc/$server")" = "${user%%:*}" ] || die "the server runs as $(stat -c %u "/proc/$server"), expected ${user%%:*}"
curl -fsS "http://127.0.0.1:$port/v1/completions" -H 'Content-Type: application/json' \
  -d '{"prompt": "The capital of France is", "max_tokens": 4, "temperature": 0}' | grep -F Paris >/dev/null ||
  die 'the answer has no Paris in it'
kill -TERM "$server"
status=0
wait "$runner" || status=$?
server=
[ "$status" = 0 ] || die "after SIGTERM exit code $status, expected 0; $folder/server.log"
echo "localhost/deepinfer:$target: $size, serves as user $user, healthy, ends with 0 after SIGTERM"
