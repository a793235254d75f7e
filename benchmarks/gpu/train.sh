#!/usr/bin/env bash
# What a GPU is wanted for beside speed: adapters of a larger base, trained there, and what they are worth.
#
#   benchmarks/gpu/train.sh BASE DATA OUT [ROWS]
#
# BASE  a checkpoint directory that `adaptermix serve` takes
# DATA  a folder of SET/train.jsonl.gz and SET/test.jsonl.gz, with the sets that docs/evaluation.md names
# OUT   adapters/TASK, the scores of single adapters (scores.json) and of routings (evaluation.json)
# ROWS  most train rows of a task (default: 2000)
#
# The same command goes on where it ended: trainings from their last checkpoint, the evaluation from its journal.
# An adapter that is there is not trained again.
#
# PYTHON   an interpreter that has the project with its extras train and bench, and whose torch sees the GPU
# MINUTES  after which it ends (default: 60)
set -euo pipefail
if [ $# -lt 3 ]; then
    sed -n '2,/^set /{/^#/s/^# \{0,1\}//p}' "$0" >&2
    exit 2
fi
base=$(realpath "$1")
data=$(realpath "$2")
out=$(realpath -m "$3")
rows=${4:-2000}
python=${PYTHON:-python3}
root=$(cd "$(dirname "$0")/../.." && pwd)
export PYTHONPATH=$root PYTHONUNBUFFERED=1
mkdir -p "$out/adapters"
cd "$root"

adaptermix() {
    local left=$((60 * ${MINUTES:-60} - SECONDS))
    [ "$left" -gt 0 ] || { echo "No time is left for: adaptermix $*" >&2; return 1; }
    timeout --kill-after=10 "$left" "$python" -m adaptermix.cli.main "$@"
}

device=$("$python" -c 'import torch; print("cuda" if torch.cuda.is_available() else "cpu")')

train() { # TASK LICENCE SET...
    local task=$1 licence=$2 files=() set
    for set in "${@:3}"; do files+=(--data "$data/$set/train.jsonl.gz"); done
    [ -e "$out/adapters/$task/adapter_model.safetensors" ] || adaptermix train lora --base "$base" \
        --device "$device" "${files[@]}" --data-licence "$licence" --max-rows "$rows" --batch-tokens 8192 \
        --sample-texts 32 --out "$out/adapters/$task"
}

# What fails does not keep the rest from being done, but it is the script's result.
status=0
train math "MIT (GSM8K)" gsm8k || status=$?
train science "CC BY-SA 4.0 (ARC, by way of LLM-Adapters, which adds ODC-By)" arc_challenge arc_easy || status=$?
train code "CC BY-NC 4.0 (CodeAlpaca): not for commercial use" codealpaca || status=$?
train reading "CC BY-SA 4.0 (SQuAD v1.1)" squad || status=$?

trained=()
for task in math science code reading; do
    [ ! -e "$out/adapters/$task/adapter_model.safetensors" ] || trained+=(--adapters "$out/adapters/$task")
done
if [ ${#trained[@]} -gt 0 ]; then
    [ -e "$out/scores.json" ] || adaptermix train eval --base "$base" --device "$device" "${trained[@]}" \
        --data "$data" --out "$out/scores.json" || status=$?
fi
if [ ${#trained[@]} -eq 8 ]; then # the routings are between all four
    adaptermix eval --model "$base" --data "$data" --adapters "$out/adapters" --out "$out/evaluation" || status=$?
fi
exit "$status"
