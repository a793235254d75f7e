"""Each instruction set by itself, on one machine."""
