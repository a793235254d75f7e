"""Experiments on recipes: arms trained on equal rows, one after another, and measured alike."""
