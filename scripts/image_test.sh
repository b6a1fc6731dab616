#!/usr/bin/env bash
# Build the image for real, on a Debian made here, and test what was built. As root, on a Debian or a relative of it.
#
#   scripts/image_test.sh [--base IMAGE] [--clean]
#
# Base and layers are kept in $DIG_IMAGE_STORE (.dig/image), so that a second run builds only what changed; --clean removes them.
set -euo pipefail
cd "$(dirname "$0")/.."

suite=bookworm
tag=localhost/dig:test
store=$(realpath -m "${DIG_IMAGE_STORE:-.dig/image}")
base="" work="" container=""

say() { printf '\n== %s\n' "$*"; }
fail() { printf 'image test: %s\n' "$*" >&2; exit 1; }
# A store of our own: whatever else buildah keeps on this host is left alone.
ours() { buildah --root "$store/root" --runroot "$store/run" --storage-driver vfs "$@"; }

tidy() {
  [ -z "$container" ] || ours rm "$container" >/dev/null
  [ -z "$work" ] || rm -rf "$work"
}

remove_store() {
  if [ -d "$store" ]; then
    ours rm --all >/dev/null
    ours rmi --all --force >/dev/null
    rm -rf "$store"
  fi
  echo "removed $store"
}

need_tools() {
  local missing=() tool
  for tool in buildah debootstrap; do
    command -v "$tool" >/dev/null || missing+=("$tool")
  done
  [ "${#missing[@]}" -gt 0 ] || return 0
  echo "installing ${missing[*]}" >&2
  if ! { apt-get update -qq && env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}"; } >&2; then
    fail "needs ${missing[*]}, which could not be installed here (Debian: apt-get install ${missing[*]})"
  fi
}

# Where this host gets Debian packages from, as lines of a sources.list for the suite.
sources() {
  apt-get indextargets --format "deb \$(REPO_URI) \$(RELEASE) \$(COMPONENT)" 'Created-By: Packages' 'Origin: Debian' |
    awk -v suite="$suite" '$4 == "main" && ($3 == suite || index($3, suite "-") == 1)' | sort -u
}

make_base() {
  local mirror
  mirror=$(sources | awk -v suite="$suite" '$3 == suite { print $2; exit }')
  [ -n "$mirror" ] || fail "apt on this host has no source of Debian $suite: name a base instead, --base IMAGE"
  say "base: debootstrap --variant=minbase $suite"
  debootstrap --variant=minbase "$suite" "$work/base" "$mirror" >"$work/debootstrap.log" || { tail -n 20 "$work/debootstrap.log" >&2; exit 1; }
  sources >"$work/base/etc/apt/sources.list"
  rm -rf "$work"/base/var/cache/apt/archives/*.deb "$work"/base/var/lib/apt/lists/*
  container=$(ours from scratch)
  ours add --quiet "$container" "$work/base" / >/dev/null
  ours commit --quiet --rm "$container" "$base" >/dev/null
  container=""
  rm -rf "$work/base"
}

build() {
  local -a volumes
  local before replaced
  before=$(ours images --quiet --no-trunc "$tag" 2>/dev/null || true)
  mapfile -t volumes < <(python3 scripts/pip_for_build.py "$work")
  apt-config dump | grep -E '^Acquire::(Check-|Retries|http|https)' >"$work/apt.conf" || true
  ours bud --isolation chroot --network host --layers --format docker --tag "$tag" --build-arg "BASE=$base" \
    --secret "id=pip,src=$work/pip.conf" --volume "$work/apt.conf:/etc/apt/apt.conf.d/90host:ro" "${volumes[@]}" .
  replaced=$(comm -13 <(ours images --quiet --no-trunc "$tag" | sort) <(printf '%s' "$before" | sort))
  [ -z "$replaced" ] || ours rmi "$replaced" >/dev/null # the image before; the layers that both have stay
}

# A command in the built image, as its own user, with what the image leaves out mounted beside it.
inside() {
  local -a mounts=()
  local path
  for path in tests ops benchmarks docs scripts .ci compose.yaml Makefile Dockerfile .dockerignore CONTRIBUTING.md CHANGELOG.md; do
    [ ! -e "$path" ] || mounts+=(--volume "$PWD/$path:/opt/dig/$path:ro")
  done
  ours run --isolation chroot --network host "${mounts[@]}" "$container" -- "$@"
}

check() {
  local name=$1 start=$SECONDS
  shift
  say "$name"
  "$@" || fail "$name failed"
  echo "-- $((SECONDS - start)) s"
}

not_root() { [ "$(inside id -u)" -ne 0 ]; }
no_secrets() {
  ! inside test -e /run/secrets -o -s /etc/pip.conf || fail "pip's settings of this host are in the image"
  ! ours inspect --type image "$tag" | grep -F -f <(sed -e '/^\[/d' -e 's/^.*= //' -e 's/^ *//' "$work/pip.conf" | grep /) || fail "pip's settings of this host are in the image's history"
}

dags_import="
from airflow.dag_processing.dagbag import DagBag
bag = DagBag('/opt/dig/dags')
assert not bag.import_errors, bag.import_errors
every = {'dig_features', 'dig_retrain', 'dig_publish', 'dig_promote', 'dig_backfill', 'dig_watch'}
assert set(bag.dags) == every, sorted(bag.dags)
print(*sorted(bag.dags))
"

while [ $# -gt 0 ]; do
  case $1 in
    --base) base=${2:?--base needs an image}; shift 2 ;;
    --clean) command -v buildah >/dev/null || fail "buildah is not here"; remove_store; exit 0 ;;
    *) fail "unknown option $1 (--base IMAGE, --clean)" ;;
  esac
done
[ "$(id -u)" -eq 0 ] || fail "run it as root: debootstrap makes device files"
need_tools
export BUILDAH_ISOLATION=chroot
mkdir -p "$store"
work=$(mktemp -d)
trap tidy EXIT

if [ -z "$base" ]; then
  base=localhost/dig-base:$suite
  ours inspect --type image "$base" >/dev/null 2>&1 || make_base
fi
check "build on $base" build
container=$(ours from --pull-never "$tag")
check "the user is not root" not_root
check "no settings of this host are left" no_secrets
check "java" inside java -version
check "torchrun" inside torchrun --help >/dev/null
check "dig, under the image's init" inside /usr/bin/tini -s -- dig --help
check "health" inside python -m jobs.health
check "every DAG can be imported" inside python -c "$dags_import"
check "unit tests" inside env -u DIG_PATHS__HOME HYPOTHESIS_STORAGE_DIRECTORY=/tmp/hypothesis \
  pytest -q -m "not slow" -p no:cacheprovider
say "passed in $SECONDS s"
ours images
du -sh "$store" | awk '{ print "the store takes " $1 "; scripts/image_test.sh --clean removes it" }'
