#!/bin/sh
# Makes a virtual environment and installs AdapterMix into it at the pinned versions.
# The Makefile and the Dockerfile both call it, so that what is tested is what is shipped.
#
#   deploy/install.sh VENV [EXTRAS]        deploy/install.sh .venv dev,postgres
#
# PYTHON           the interpreter to use; otherwise the first of 3.11, 3.12, 3.13 that is found
# TORCH_INDEX_URL  where to look for torch besides pip's own index, to choose its build:
#                  https://download.pytorch.org/whl/cpu or https://download.pytorch.org/whl/cu130;
#                  unset, it is the first of these on Linux without nvidia-smi, where it is reached;
#                  set and empty, pip's own index alone
# INSTALL_MODE     editable (default), or copy: the environment then stands without the source tree
set -eu

[ $# -ge 1 ] || { echo "usage: $0 VENV [EXTRAS]" >&2; exit 2; }
venv=$1
extras=${2:+[$2]}
root=$(cd "$(dirname "$0")/.." && pwd)
constraints=$root/constraints.txt

supported() {
    "$1" -c 'import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null
}

find_python() {
    for candidate in ${PYTHON:-python3.11 python3.12 python3.13 python3 python}; do
        if supported "$candidate"; then
            echo "$candidate"
            return
        fi
    done
    echo "No usable Python ${PYTHON:+at $PYTHON }was found: AdapterMix needs 3.11, 3.12 or 3.13 with its" >&2
    echo "venv module (Debian, Ubuntu: apt-get install python3-venv). PYTHON=/path/to/python chooses one." >&2
    return 1
}

# pip's progress bars are for a person at a terminal; a log gets its errors only.
if [ -t 1 ]; then quiet=; else quiet=-qq; fi

pip_install() {
    "$venv/bin/python" -m pip install $quiet --disable-pip-version-check --no-compile --constraint "$constraints" "$@"
}

case ${INSTALL_MODE:-editable} in
    editable) source_option=--editable ;;
    copy) source_option= ;;
    *) echo "INSTALL_MODE is '$INSTALL_MODE': editable or copy are possible." >&2; exit 2 ;;
esac

if ! [ -x "$venv/bin/python" ]; then
    python=$(find_python)
    echo "Making $venv with $("$python" --version)"
    "$python" -m venv "$venv"
fi

cpu_index=https://download.pytorch.org/whl/cpu
if [ -z "${TORCH_INDEX_URL+set}" ] && [ "$(uname -s)" = Linux ] && ! command -v nvidia-smi >/dev/null &&
    "$venv/bin/python" -c "import urllib.request as r; r.urlopen('$cpu_index/torch/', timeout=5)" 2>/dev/null
then
    TORCH_INDEX_URL=$cpu_index
fi

# torch goes first and by its exact version: a range would let pip take the newest build there is, with
# gigabytes of CUDA libraries. Once it is there, the second command finds its requirement met.
echo "Installing torch"
pip_install ${TORCH_INDEX_URL:+--extra-index-url "$TORCH_INDEX_URL"} "$(grep '^torch==' "$constraints")"
echo "Installing AdapterMix and its libraries"
pip_install $source_option "$root$extras"
# On all cores, where pip's own compilation takes one. A package may hold files that no Python reads.
"$venv/bin/python" -m compileall -q -j 0 "$venv/lib" >/dev/null || true
# Compiled ahead, so that the first start has them; in an image for every processor that it may meet.
echo "Compiling the CPU kernels"
"$venv/bin/python" -P -m router_engine.backends.cpu.build $(if [ -z "$source_option" ]; then echo --all; fi)
