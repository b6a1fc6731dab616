#!/usr/bin/env bash
# The stack needs PostgreSQL and Redis: find them, or install them through the system's package manager where this user may.
# Prints the folder of PostgreSQL's programs, then the path of redis-server.
set -euo pipefail

find_postgres() {
  local candidate
  for candidate in "${POSTGRES_BIN:-}" $(ls -d /usr/lib/postgresql/*/bin 2>/dev/null | sort -rV) /usr/pgsql-*/bin "$(dirname "$(command -v initdb || echo /none/initdb)")"; do
    [ -n "$candidate" ] && [ -x "$candidate/initdb" ] && [ -x "$candidate/postgres" ] && [ -x "$candidate/pg_isready" ] || continue
    echo "$candidate"
    return 0
  done
  return 1
}

find_redis() { command -v redis-server || { [ -x /usr/sbin/redis-server ] && echo /usr/sbin/redis-server; }; }

install_packages() {
  local sudo=""
  if [ "$(id -u)" -ne 0 ]; then
    command -v sudo >/dev/null && sudo -n true 2>/dev/null || return 1
    sudo="sudo -n"
  fi
  command -v apt-get >/dev/null || return 1
  # The packages would start servers of their own; the stack never uses those. A policy that somebody has set stays.
  local policy=/usr/sbin/policy-rc.d ours=""
  if [ ! -e "$policy" ]; then
    ours=yes
    printf '#!/bin/sh\nexit 101\n' | $sudo tee "$policy" >/dev/null
    $sudo chmod 755 "$policy"
  fi
  # Nor does it use the cluster that postgresql-common makes by default.
  if [ ! -e /etc/postgresql-common/createcluster.conf ]; then
    $sudo mkdir -p /etc/postgresql-common
    echo 'create_main_cluster = false' | $sudo tee /etc/postgresql-common/createcluster.conf >/dev/null
  fi
  local status=0
  {
    $sudo apt-get update -qq &&
      $sudo env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
        -o Dpkg::Options::=--force-confold postgresql redis-server
  } >&2 || status=1
  [ -z "$ours" ] || $sudo rm -f "$policy"
  return $status
}

if ! postgres=$(find_postgres) || ! redis=$(find_redis); then
  echo "PostgreSQL or Redis not found; installing them" >&2
  if ! install_packages || ! postgres=$(find_postgres) || ! redis=$(find_redis); then
    echo "PostgreSQL and redis-server are needed by the local stack and could not be installed here: install them (Debian: apt-get install postgresql redis-server), or name a folder of PostgreSQL's programs in POSTGRES_BIN" >&2
    exit 1
  fi
fi
echo "$postgres"
echo "$redis"
