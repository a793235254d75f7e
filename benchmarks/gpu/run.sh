#!/usr/bin/env bash
# All that a machine with a GPU is wanted for, within 10 minutes: correctness first, then an 8B shape.
#
#   benchmarks/gpu/run.sh [OUT]                    measure; a file a phase, gpu.json and gpu.md go to OUT
#   benchmarks/gpu/run.sh wheels FOLDER VERSION    gather wheels for a machine without network whose
#                                                  Python is VERSION (3.12)
#
# The same command goes on where it ended: what OUT holds of the same sources, machine and settings is kept.
#
# PYTHON     an interpreter whose torch sees the GPU (default: python3)
# WHEELS     a folder of wheels to install beside what it has, without network
# SCRATCH    where checkpoint and adapters may lie, 30 GB (default: /dev/shm where that holds them)
# MINUTES    after which no measurement begins (default: 9; half a minute later all is ended)
# BENCH_ARGS options of `python -m benchmarks.gpu run`, for example "--shape tiny --phases steps"
set -euo pipefail
root=$(cd "$(dirname "$0")/../.." && pwd)
python=${PYTHON:-python3}

if [ "${1:-}" = wheels ]; then
    exec "$python" -m pip download --quiet --no-deps --only-binary=:all: --python-version "$3" \
        --constraint "$root/constraints.txt" --requirement "$root/benchmarks/gpu/packages.txt" --dest "$2"
fi

out=$(realpath -m "${1:-$root/benchmarks/results/gpu}")
mkdir -p "$out"
cd "$root"
export PYTHONPATH=$root PYTHONUNBUFFERED=1

scratch=${SCRATCH:-}
if [ -z "$scratch" ] && [ "$(df --output=avail -k /dev/shm 2>/dev/null | tail -1)" -gt 32000000 ] 2>/dev/null; then
    scratch=/dev/shm
fi
work=$(mktemp -d "${scratch:-${TMPDIR:-/tmp}}/adaptermix-gpu-XXXXXX")
trap 'rm -rf "$work"' EXIT

if [ -n "${WHEELS:-}" ]; then
    "$python" -m pip install --quiet --no-index --no-deps --target "$work/site" "$WHEELS"/*.whl
    export PYTHONPATH=$root:$work/site
fi

"$python" -c 'import torch, triton; print("torch", torch.__version__, "triton", triton.__version__, torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU")'

measure() { # in what is left of MINUTES
    local left=$((60 * ${MINUTES:-9} - SECONDS))
    [ "$left" -gt 0 ] || left=0
    # shellcheck disable=SC2086
    timeout --kill-after=10 $((left + 30)) "$python" -m benchmarks.gpu run --out "$out" --folder "$work" \
        --minutes "$((left / 60)).$((left % 60 * 10 / 60))" ${BENCH_ARGS:-} 2>&1 | tee -a "$out/run.log"
}

# An error of the device spoils all that comes after it in its process: what failed is tried once more.
status=0
measure || measure || status=$?
"$python" -m benchmarks.gpu report --out "$out" || status=$?
exit "$status"
