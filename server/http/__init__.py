"""HTTP alone: who is let in, bodies and forms read, replies written; one folder a wire format."""
