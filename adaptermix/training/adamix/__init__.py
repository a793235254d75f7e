"""What AdaMix trains: copies of one small module, drawn at random and averaged at the end."""
