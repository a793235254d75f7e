"""The model that AdaMix trains: copies of a small module, drawn at random, averaged at the end."""
