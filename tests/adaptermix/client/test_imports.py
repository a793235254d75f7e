"""What a client loads: it waits for no library that only servers, stores or models need."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

FORBIDDEN = {
    *("torch", "transformers", "tokenizers", "safetensors", "numpy", "accelerate", "peft"),
    *("fastapi", "starlette", "uvicorn", "structlog", "prometheus_client", "sse_starlette"),
    *("sqlalchemy", "alembic", "obstore", "zmq", "psutil", "training", "benchmarks", "deploy"),
}
# Of importing the names; settings are read where an address or a key is left out.
_LOADS = """
import sys
import adaptermix
assert not {name for name in sys.modules if name.startswith("adaptermix.")}
from adaptermix import AsyncClient, Client, Mixture, SamplingParams
assert "server.settings" not in sys.modules
assert "server.schemas.openai" not in sys.modules
with Client("http://127.0.0.1:9", "key"):
    assert "server.settings" not in sys.modules
with Client():
    pass
print(*sorted({name.partition(".")[0] for name in sys.modules}))
"""


def test_a_client_loads_no_model_no_server_and_no_store() -> None:
    done = subprocess.run(
        [sys.executable, "-c", _LOADS],
        cwd=Path(__file__).parents[3],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    loaded = set(done.stdout.split())
    assert {"adaptermix", "httpx", "pydantic"} <= loaded
    assert not loaded & FORBIDDEN
