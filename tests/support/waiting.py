"""How long a test waits for what always comes: a limit for a hang, and no measure of speed."""

HANG_SECONDS = 600.0  # no machine is so slow
