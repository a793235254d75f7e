"""API keys: two kinds, kept in the store; without any, this machine only."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from server.http.container import Container
from server.settings import SettingsError
from tests.server.live import Live, serving, tiny_settings

ADMIN = "an-admin-key-from-the-environment"
OPEN = ("/health", "/health/live", "/health/ready", "/metrics", "/openapi.json")


@dataclass(frozen=True)
class Keyed:
    live: Live
    use: str
    admin: str
    use_id: str

    def get(self, path: str, key: str | None = None) -> httpx.Response:
        headers = {} if key is None else {"Authorization": f"Bearer {key}"}
        return self.live.client.get(path, headers=headers)


@pytest.fixture(scope="module")
def keyed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Keyed]:
    settings = tiny_settings(tmp_path_factory.mktemp("keyed"), admin_key=ADMIN)
    with serving(settings) as live:
        store = live.container.store
        key, use = store.create_key("someone", "use")
        _, admin = store.create_key("boss", "admin")
        yield Keyed(live, use, admin, key.id)


@pytest.mark.parametrize("path", OPEN)
def test_these_need_no_key(keyed: Keyed, path: str) -> None:
    assert keyed.get(path).status_code == 200


@pytest.mark.parametrize("path", ["/info", "/v1/models", "/admin/adapters", "/admin/merged"])
def test_without_a_key_the_rest_is_401(keyed: Keyed, path: str) -> None:
    for key in (None, "wrong", "amx_0_0"):
        response = keyed.get(path, key)
        assert response.status_code == 401
        assert response.headers["www-authenticate"] == "Bearer"


def test_a_use_key_opens_generation_only(keyed: Keyed) -> None:
    assert keyed.get("/v1/models", keyed.use).status_code == 200
    refused = keyed.get("/admin/adapters", keyed.use)
    assert refused.status_code == 403
    assert refused.json()["error_type"] == "forbidden"
    body = {"inputs": "x", "parameters": {"max_new_tokens": 1}}
    headers = {"X-Api-Key": keyed.use}
    assert keyed.live.client.post("/generate", json=body, headers=headers).status_code == 200
    assert keyed.live.client.post("/generate", json=body).status_code == 401


def test_admin_keys_open_everything(keyed: Keyed) -> None:
    for key in (keyed.admin, ADMIN):
        assert keyed.get("/admin/adapters", key).status_code == 200
        assert keyed.get("/v1/models", key).status_code == 200


def test_under_v1_the_error_has_openai_s_shape(keyed: Keyed) -> None:
    assert "API key" in keyed.get("/v1/models").json()["error"]["message"]


def test_a_revoked_key_opens_nothing_at_once(keyed: Keyed) -> None:
    key, secret = keyed.live.container.store.create_key("leaver", "use")
    assert keyed.get("/v1/models", secret).status_code == 200
    keyed.live.container.store.revoke_key(key.id)
    assert keyed.get("/v1/models", secret).status_code == 401


def test_secrets_are_not_kept(keyed: Keyed) -> None:
    root = keyed.live.container.settings.store_dir
    kept = b"".join(path.read_bytes() for path in root.rglob("*") if path.is_file())
    for secret in (keyed.use, keyed.admin, ADMIN):
        assert secret.encode() not in kept


def test_without_keys_only_loopback_is_listened_on(tmp_path: Path) -> None:
    settings = tiny_settings(tmp_path, host="0.0.0.0")
    container = Container(settings)
    with pytest.raises(SettingsError, match=r"0\.0\.0\.0.*keys create"):
        container.auth.require_safe_host()
    container.store.create_key("boss", "admin")
    container.store.close()
    again = Container(settings)
    again.auth.require_safe_host()
    again.store.close()


def test_without_keys_web_pages_cannot_speak_for_the_user(bare: Live) -> None:
    for headers in ({"Host": "evil.example"}, {"Origin": "https://evil.example"}):
        response = bare.client.get("/admin/adapters", headers=headers)
        assert response.status_code == 403
    own = {"Host": "localhost:8000", "Origin": "http://localhost:8000"}
    assert bare.client.get("/admin/adapters", headers=own).status_code == 200


@pytest.mark.parametrize(
    "host",
    [
        *(
            "evil@localhost",
            "localhost#evil",
            "localhost/evil",
            "localhost?evil",
            "localhost\\evil",
        ),
        *("localhost:99999999", "localhost:65536", "localhost:x", "localhost:-1", "localhost:8:8"),
        *(
            "[::1",
            "::1",
            "[::1]evil",
            "[::1%25eth0]",
            "localhost.",
            "localhost evil",
            "x@127.0.0.1",
        ),
        *("127.0.0.1.evil.example", "http://localhost", ""),
    ],
)
def test_a_host_is_a_name_and_a_port_and_nothing_else(bare: Live, host: str) -> None:
    for headers in ({"Host": host}, {"Origin": f"http://{host}"}):
        assert bare.client.get("/admin/adapters", headers=headers).status_code == 403


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:1", "127.0.0.1:65535", "[::1]:8000"])
def test_names_of_this_machine_are_its_own(bare: Live, host: str) -> None:
    own = {"Host": host, "Origin": f"https://{host}"}
    assert bare.client.get("/admin/adapters", headers=own).status_code == 200
