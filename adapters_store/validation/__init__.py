"""Does an adapter fit the base model, and are its numbers sound? All problems at once."""

from adapters_store.validation.fit import misfits
from adapters_store.validation.tensors import tensor_shapes
from adapters_store.validation.validate import validate

__all__ = ["misfits", "tensor_shapes", "validate"]
