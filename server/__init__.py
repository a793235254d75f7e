"""The door: HTTP, CLI, authentication and metrics; the only place that wires things together."""
