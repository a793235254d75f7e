#!/bin/sh
# Prints a constraints file: every package of an environment at its version, torch without its local label.
set -eu

cat <<'HEAD'
# Every dependency, direct and transitive, at the version this tree is tested with (`make constraints`
# writes it anew). torch carries no local label (+cpu, +cu130): the index that is asked decides which
# build it is. A CUDA build brings its nvidia-* packages at the versions it asks for itself, and triton at
# the one below: that is the one which this torch's CUDA builds ask for.
HEAD
"$1" -m pip freeze --all --exclude-editable | sed 's/+[a-z0-9]*$//' | grep -viE '^(pip|wheel|nvidia-.*)=='
# Extras for GPUs that the environment of development goes without: their pins are carried over.
grep -E '^(torchao|flashinfer-python)==' "$(dirname "$0")/../constraints.txt"
