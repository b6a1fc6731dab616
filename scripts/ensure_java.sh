#!/usr/bin/env bash
# Spark needs Java 17 or newer: find it, or install it through the system's package manager where this user may.
set -euo pipefail
wanted=17

version_of() { "$1" -version 2>&1 | sed -n 's/.*version "\([0-9]*\).*/\1/p' | head -n 1; }

find_java() {
  local candidate version
  for candidate in "${JAVA_HOME:+$JAVA_HOME/bin/java}" "$(command -v java || true)" /usr/lib/jvm/*/bin/java; do
    [ -n "$candidate" ] && [ -x "$candidate" ] || continue
    version=$(version_of "$candidate")
    if [ -n "$version" ] && [ "$version" -ge "$wanted" ]; then
      dirname "$(dirname "$(readlink -f "$candidate")")"
      return 0
    fi
  done
  return 1
}

install_java() {
  local sudo=""
  if [ "$(id -u)" -ne 0 ]; then
    command -v sudo >/dev/null && sudo -n true 2>/dev/null || return 1
    sudo="sudo -n"
  fi
  if command -v apt-get >/dev/null; then
    $sudo apt-get update -qq && $sudo env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends openjdk-17-jre-headless
  elif command -v dnf >/dev/null; then
    $sudo dnf install -y -q java-17-openjdk-headless
  elif command -v yum >/dev/null; then
    $sudo yum install -y -q java-17-openjdk-headless
  elif command -v apk >/dev/null; then
    $sudo apk add --quiet openjdk17-jre-headless
  else
    return 1
  fi >&2
}

if ! home=$(find_java); then
  echo "Java $wanted or newer not found; installing it" >&2
  if ! install_java || ! home=$(find_java); then
    echo "Java $wanted or newer is needed by Spark and could not be installed here: install a JRE (Debian: apt-get install openjdk-17-jre-headless) or set JAVA_HOME" >&2
    exit 1
  fi
fi
echo "$home"
