"""The server: HTTP, authentication, metrics; wires the store and the engine together."""
