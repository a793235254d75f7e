"""A lock for what other threads may not do to the device while a graph is captured."""

from __future__ import annotations

import threading

DEVICE_CALLS = threading.Lock()
"""Held by a capture, and by whatever a loader's thread allocates or pins for the device."""
