"""How long a test waits for what always comes: a limit for a hang, and no measure of speed."""

HANG_SECONDS = 600.0  # the least that tests/test_waiting.py lets a test wait for an event
