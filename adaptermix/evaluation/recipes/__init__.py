"""Which recipe is worth what: arms trained on equal rows, one after another, and measured alike."""
