"""Measurements on a GPU in a few minutes: correctness, then an 8B shape with random weights."""
