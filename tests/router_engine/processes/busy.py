"""A process that computes until it is killed, by the system if nobody else does."""

from __future__ import annotations

import resource

from tests.support.waiting import HANG_SECONDS

if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_CPU, (int(HANG_SECONDS), int(HANG_SECONDS)))
    while True:
        pass
