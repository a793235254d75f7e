"""The school: recipes that make adapters."""
