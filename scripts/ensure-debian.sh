#!/bin/sh
# Sees to it that mmdebstrap is there, for the tests that build the image in a root of a plain Debian.
set -eu

command -v mmdebstrap >/dev/null && [ -e /usr/share/keyrings/debian-archive-keyring.gpg ] && exit 0
if [ "$(id -u)" -eq 0 ] && command -v apt-get >/dev/null; then
    echo "Installing mmdebstrap"
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -qq
    apt-get install -y -qq --no-install-recommends mmdebstrap debian-archive-keyring >/dev/null
    exit 0
fi
echo "The tests of the image need root and Debian's mmdebstrap: apt-get install mmdebstrap." >&2
exit 1
