"""AdaMix checkpoints, of both published forms, as our own adapters."""
