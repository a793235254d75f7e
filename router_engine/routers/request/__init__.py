"""Routers that choose weights once, from the prompt."""
