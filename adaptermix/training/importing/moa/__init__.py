"""MoA checkpoints, of both published codebases, as our own adapters."""
