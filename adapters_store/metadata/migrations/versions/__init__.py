"""One file a step. To add one: copy the last, give it a new `revision`, point `down_revision`."""
