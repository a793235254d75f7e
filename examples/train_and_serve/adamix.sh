#!/usr/bin/env bash
# Trains an AdaMix adapter on the rows that come with the project, publishes its mean and its copies,
# and asks under both.
#
#   examples/train_and_serve/adamix.sh [FOLDER [OPTION OF `adaptermix train adamix`]...]
#
# FOLDER (places-adamix) is what is trained, and the adapter's name. A server at $ADAPTERMIX_URL
# (http://127.0.0.1:8000) is used where one is ready; else one is started there, and stopped at the end.
set -euo pipefail

data="$(dirname "$0")/../data/places.jsonl"
folder="${1:-places-adamix}"
name="$(basename "$folder")"
export ADAPTERMIX_URL="${ADAPTERMIX_URL:-http://127.0.0.1:8000}"
prompt=$'Record: name: Blue Heron | kind: inn | place: by the river | open: all year | known for: the garden\n\nSentence:'

ready() { curl --silent --fail --output /dev/null "$ADAPTERMIX_URL/health/ready"; }

adaptermix train adamix --keep-copies --consistency 10 --data "$data" --data-licence "Apache-2.0" \
  --dev-rows 8 --epochs 4 --batch-tokens 256 --out "$folder" "${@:2}"

if ! ready; then
  adaptermix serve --port "${ADAPTERMIX_URL##*:}" &
  server=$!
  trap 'kill "$server" && wait "$server" || true' EXIT
  until ready; do
    kill -0 "$server" # ends the script where the server has ended
    sleep 1
  done
fi

adaptermix adapters publish "$folder" --name "$name"
adaptermix adapters publish "$folder.copies" --name "$name.copies"
echo "the base:"
adaptermix generate "$prompt" --max-new-tokens 40
echo "under $name, the mean of the copies:"
adaptermix generate "$prompt" --adapter "$name" --max-new-tokens 40
echo "under $name.copies, averaged when it is loaded:"
adaptermix generate "$prompt" --adapter "$name.copies" --max-new-tokens 40
