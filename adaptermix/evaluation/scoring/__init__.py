"""Scores of adapters beside the base, on test rows, with intervals."""
