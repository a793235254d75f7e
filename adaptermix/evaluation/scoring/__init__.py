"""How far adapters are ahead of the base, on test rows, with intervals."""
