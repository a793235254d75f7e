#!/bin/sh
# Sees to it that a compiler for 64-bit ARM and an emulator of its processors are there, for the tests of
# the kernels' ARM code: these run on any Linux machine, and on ARM with processors newer than its own.
set -eu

missing=
command -v aarch64-linux-gnu-g++ >/dev/null || missing="g++-aarch64-linux-gnu"
command -v qemu-aarch64 >/dev/null || command -v qemu-aarch64-static >/dev/null || missing="$missing qemu-user"
[ -n "$missing" ] || exit 0

if [ "$(id -u)" -eq 0 ] && command -v apt-get >/dev/null; then
    echo "Installing" $missing
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -qq
    apt-get install -y -qq --no-install-recommends $missing >/dev/null
    exit 0
fi
echo "The tests of the kernels' ARM code need a compiler for 64-bit ARM and QEMU's emulator of its processors." >&2
echo "Debian, Ubuntu: sudo apt-get install g++-aarch64-linux-gnu qemu-user." >&2
echo "Elsewhere, macOS among it, they can be left out: make test MARKERS='not gpu and not arm'." >&2
exit 1
