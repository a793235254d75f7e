"""What a GPU is wanted for, in a few minutes: correctness, then an 8B shape with random weights."""
