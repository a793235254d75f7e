"""Does an adapter fit the base model, and are its numbers sound? All problems at once."""

from adapters_store.validation.validate import misfits, validate

__all__ = ["misfits", "validate"]
