"""The sentence encoder, in a process of its own."""
