#!/bin/sh
# Sees to it that PostgreSQL's programs are there, for the tests that start a database of their own.
set -eu

if command -v postgres >/dev/null || ls /usr/lib/postgresql/*/bin/postgres >/dev/null 2>&1; then
    exit 0
fi
if [ "$(id -u)" -eq 0 ] && command -v apt-get >/dev/null; then
    echo "Installing PostgreSQL"
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -qq
    apt-get install -y -qq --no-install-recommends postgresql >/dev/null
    exit 0
fi
echo "The tests of the PostgreSQL metadata store need its server programs (initdb, postgres)." >&2
echo "Debian, Ubuntu: sudo apt-get install postgresql. macOS: brew install postgresql." >&2
exit 1
