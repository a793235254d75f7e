#!/usr/bin/env bash
# All that a machine with a GPU is wanted for, within 8 minutes: correctness first, then an 8B shape.
#
#   benchmarks/gpu/run.sh [OUT]                    measure; gpu.json, gpu.md and tests.log go to OUT
#   benchmarks/gpu/run.sh wheels FOLDER VERSION    gather wheels for a machine without network whose
#                                                  Python is VERSION (3.12)
#
# PYTHON     an interpreter whose torch sees the GPU (default: python3)
# WHEELS     a folder of wheels to install beside what it has, without network
# SCRATCH    where the checkpoint of the shape may lie, 17 GB (default: /dev/shm where that holds it)
# BENCH_ARGS options of `python -m benchmarks.gpu`, for example "--shape tiny --requests 4 --steps 4"
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

if [ -n "${WHEELS:-}" ]; then
    site=$(mktemp -d)
    trap 'rm -rf "$site"' EXIT
    "$python" -m pip install --quiet --no-index --no-deps --target "$site" "$WHEELS"/*.whl
    export PYTHONPATH=$root:$site
fi

scratch=${SCRATCH:-}
if [ -z "$scratch" ] && [ "$(df --output=avail -k /dev/shm 2>/dev/null | tail -1)" -gt 20000000 ] 2>/dev/null; then
    scratch=/dev/shm
fi

"$python" -c 'import torch, triton; print("torch", torch.__version__, "triton", triton.__version__, torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU")'

# A failure does not keep the figures from being taken, but it is the script's result.
status=0
if "$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
    workers=$("$python" -c 'import importlib.util as u; print("-n 8" if u.find_spec("xdist") else "")')
    # shellcheck disable=SC2086
    timeout 180 "$python" -m pytest -q -m gpu $workers tests/router_engine 2>&1 | tee "$out/tests.log" || status=$?
else
    echo "No GPU: its tests are left out." | tee "$out/tests.log"
fi

# shellcheck disable=SC2086
timeout 300 "$python" -m benchmarks.gpu --out "$out" ${scratch:+--folder "$scratch"} ${BENCH_ARGS:-}
exit "$status"
