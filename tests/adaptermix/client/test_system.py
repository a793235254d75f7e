"""What a server says of itself."""

from __future__ import annotations

from tests.adaptermix.client.asking import Asker
from tests.server.live import Live


def test_health(served: Live, ask: Asker) -> None:
    assert ask(lambda c: c.live()).status == "live"
    assert ask(lambda c: c.ready()).status == "ready"
    draining = served.container.draining
    draining.is_on = True
    try:
        reply = ask(lambda c: c.ready())
    finally:
        draining.is_on = False
    assert (reply.status, reply.engine) == ("not_ready", "ready")


def test_what_is_served(ask: Asker) -> None:
    assert ask(lambda c: c.info()).model_id == "tiny-random"
    assert "adaptermix_requests_total" in ask(lambda c: c.metrics())
    assert "uniform" in {router.name for router in ask(lambda c: c.routers())}
    models = ask(lambda c: c.models())
    assert models[0].id == ask(lambda c: c.base_model()) == "tiny-random"
    assert {"math", "code"} <= {model.id for model in models}
    assert ask(lambda c: c.model("math@1")).parent == "tiny-random"
