"""The names of the package: each is there, and only when it is used."""

from __future__ import annotations

import inspect

import pytest

import adaptermix
from adaptermix import errors


def test_every_name_is_there() -> None:
    assert len(set(adaptermix.__all__)) == len(adaptermix.__all__)
    for name in adaptermix.__all__:
        assert getattr(adaptermix, name).__name__ == name
        assert name in dir(adaptermix)


def test_every_error_is_exported_and_under_one_base() -> None:
    classes = {name: one for name, one in vars(errors).items() if inspect.isclass(one)}
    raised = {name for name, one in classes.items() if issubclass(one, Exception)}
    assert raised <= set(adaptermix.__all__)
    assert all(issubclass(classes[name], adaptermix.AdapterMixError) for name in raised)


def test_a_name_that_is_none_is_refused() -> None:
    with pytest.raises(AttributeError, match="Clients"):
        _ = adaptermix.Clients
