"""The peer transformers + PEFT: `generate` in static batches, `adapter_names` for mixed ones."""

from __future__ import annotations

from adaptermix.bench.peers.environment import FREE, TORCH, PeerEnvironment, ours
from adaptermix.bench.peers.systems import Context, Opened, Worker

NAME = "transformers + PEFT"
PACKAGES = ("transformers", "peft", "safetensors", "accelerate")


def open_peer(context: Context) -> Opened:
    """See `OpenPeer`."""
    environment = PeerEnvironment("transformers", context.cache)
    requirements = [ours(package) for package in PACKAGES]

    def install(environment: PeerEnvironment) -> None:
        environment.install_torch()
        constraint = str(environment.constraint())
        environment.pip("install", "-q", "-c", constraint, *requirements)

    environment.ensure(" ".join([TORCH, *requirements]), install)
    worker = Worker(
        [
            *(*FREE, environment.python, "-m", "adaptermix.bench.peers.workers.transformers_peft"),
            *(context.model, str(context.adapters[0].parent), str(context.threads)),
        ],
        environment.folder / "run.log",
        context.tokenize,
    )
    context.stack.callback(worker.close)
    versions = {name: environment.version_of(name) for name in ("torch", *PACKAGES[:2])}
    return Opened({NAME: worker}, versions | {"dtype": worker.about["dtype"]})
