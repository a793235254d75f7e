"""Checkpoints of other trainers -> adapter folders. Only the command line runs this."""
