"""Training of adapters by recipes, and imports of foreign checkpoints."""
