"""The fixtures of the server's tests, for the commands that talk to one."""

from tests.server.conftest import _quiet, bare, folders, live

__all__ = ["_quiet", "bare", "folders", "live"]
