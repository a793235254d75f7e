#!/bin/sh
# Brings the models that the settings name and that aren't in the volume yet, then becomes the server:
# a download may take longer than a start of the engine.
set -eu

adaptermix pull
exec adaptermix serve "$@"
