#!/bin/sh
# Brings what isn't in the volume yet, then becomes the server.
set -eu

case ${ADAPTERMIX_MODEL:-default} in
    default) adaptermix pull ;;
    *) adaptermix pull all-minilm-l6-v2 ;; # another base model comes from its hub or directory
esac
exec adaptermix serve "$@"
