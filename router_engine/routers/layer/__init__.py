"""Routers whose weights arise inside the layers."""
