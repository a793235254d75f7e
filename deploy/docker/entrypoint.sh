#!/bin/sh
# Brings the base model into the volume if it isn't there, then becomes the server.
set -eu

adaptermix pull ${ADAPTERMIX_MODEL:+--model "$ADAPTERMIX_MODEL"}
exec adaptermix serve "$@"
