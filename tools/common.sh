# Sourced by quickstart.sh, test.sh, .ci/full and tools/portable.sh, after they set `root` to the repository.
# Gives: die, now, run_logged, install_packages, build_preset.
# shellcheck shell=bash

log=${DEEPINFER_LOG:-$root/build/$(basename "$0" .sh).log}
mkdir -p "$(dirname "$log")"
: >"$log"

die() {
  printf '%s: %s\n' "$(basename "$0")" "$1" >&2
  exit "${2:-1}"
}

now() { date +%s; }

# Reads apt's status lines and ninja's [n/m] and shows a percentage: in place on a terminal, else in four steps.
# All but apt's status lines goes to the log.
show_progress() {
  local line percent what last=-1
  while IFS= read -r line; do
    case $line in [dp][lm]status:*) ;; *) printf '%s\n' "$line" >>"$log" ;; esac
    case $line in
      dlstatus:*) what=download; IFS=: read -r _ _ percent _ <<<"$line" ;;
      pmstatus:*) what=unpack; IFS=: read -r _ _ percent _ <<<"$line" ;;
      \[*/*\]*)
        what=build
        line=${line#\[}
        line=${line%%\]*}
        [[ $line =~ ^[0-9]+/[1-9][0-9]*$ ]] || continue
        percent=$((100 * ${line%/*} / ${line#*/}))
        ;;
      *) continue ;;
    esac
    percent=${percent%.*}
    [[ $percent =~ ^[0-9]+$ ]] || continue
    if [ -t 1 ]; then
      printf '\r      %-9s %3d%%' "$what" "$percent"
    elif [ "$what$((percent / 25))" != "$last" ]; then
      printf '      %-9s %3d%%\n' "$what" "$percent"
      last=$what$((percent / 25))
    fi
  done
  if [ -t 1 ] && [ -n "${percent:-}" ]; then printf '\r%30s\r' ''; fi
}

# run_logged WHAT command...: shows progress; on failure the end of the log. The exit status is the command's.
run_logged() {
  local what=$1 status=0
  shift
  "$@" 2>&1 </dev/null | show_progress || status=$?
  [ "$status" = 0 ] && return 0
  printf -- '--- %s failed (exit status %s); the end of %s:\n' "$what" "$status" "$log" >&2
  tail -n 60 "$log" >&2
  return "$status"
}

packages_of() {  # group...
  local group words
  while read -r group words; do
    # shellcheck disable=SC2086
    case " $* " in *" $group "*) printf '%s\n' $words ;; esac
  done <"$root/tools/packages.txt"
}

missing_packages() {  # group...
  command -v dpkg-query >/dev/null || die "no dpkg-query: this script installs packages on Debian 12 only. Elsewhere
install the libraries that tools/packages.txt names, then: cmake --preset release && cmake --build --preset release"
  # shellcheck disable=SC2046
  dpkg-query -W -f '${db:Status-Status} ${Package}\n' $(packages_of "$@") 2>/dev/null |
    { grep '^installed ' || true; } | cut -d' ' -f2 | sort -u |
    comm -13 - <(packages_of "$@" | sort -u)
}

install_packages() {  # group...
  local missing sudo=()
  mapfile -t missing < <(missing_packages "$@")
  [ ${#missing[@]} = 0 ] && return 0
  if [ "$(id -u)" != 0 ]; then
    command -v sudo >/dev/null || die "these Debian packages are missing, and neither root nor sudo is here to install them.
Ask someone who may: apt-get install --no-install-recommends ${missing[*]}"
    sudo=(sudo)
    # The question for the password must be asked before the output goes to the log.
    sudo -v || die "sudo refused. Install these as root: apt-get install --no-install-recommends ${missing[*]}"
  fi
  run_logged 'apt-get update' "${sudo[@]}" apt-get update -q -o DPkg::Lock::Timeout=300 || return
  # apt makes its status pipe non-blocking, which would break the scripts of packages that print to the same one:
  # the status alone goes to our pipe, all else to the log. The inner shell does that behind sudo, which closes 9.
  # shellcheck disable=SC2016
  run_logged 'apt-get install' "${sudo[@]}" sh -c 'log=$1; shift; exec "$@" 9>&1 >>"$log" 2>&1' sh "$log" \
    env DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends \
    -o DPkg::Lock::Timeout=300 -o Dpkg::Use-Pty=0 -o APT::Status-Fd=9 "${missing[@]}"
}

# build_preset PRESET TARGETS [cmake arguments...]: configures when needed, builds the targets ("all": everything).
build_preset() {
  local preset=$1 targets=$2
  shift 2
  if [ $# -gt 0 ] || [ ! -f "$root/build/$preset/build.ninja" ]; then
    run_logged "cmake --preset $preset" cmake -S "$root" --preset "$preset" "$@" || return
  fi
  # shellcheck disable=SC2086
  run_logged "the build of $preset" cmake --build "$root/build/$preset" --target $targets
}
