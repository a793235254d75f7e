"""`adaptermix eval`: tasks under routings, measured through the server."""
