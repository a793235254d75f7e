"""Every error of the server as a class of its own, and what goes wrong before one answers."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from adaptermix import (
    AdapterRefusedError,
    Client,
    ConflictError,
    ForbiddenError,
    GenerationFailedError,
    HeadTooLargeError,
    InvalidRequestError,
    MethodNotAllowedError,
    Mixture,
    NotFoundError,
    OverloadedError,
    Piece,
    RequestTimeoutError,
    SamplingParams,
    ServerFaultError,
    StatusError,
    TimedOutError,
    TooLargeError,
    UnauthorizedError,
    UnavailableError,
    UnsupportedContentError,
    errors,
)
from adaptermix.client.calls import Call, Request
from adaptermix.client.failures import TYPES
from server.errors import TABLE
from server.http.error_replies import _HTTP_TYPES
from tests.adaptermix.client.asking import Asker
from tests.adaptermix.client.conftest import KINDS
from tests.server.foreign import Foreign
from tests.server.live import Live, serving, tiny_settings
from tests.support.tiny import make_lora_folder
from tests.support.waiting import HANG_SECONDS, wait_for

SOON = 0.05  # seconds, of an engine that stands still: any would do
SMALL_BODY = 1 << 16
NOWHERE = "http://127.0.0.1:9"
LONG = SamplingParams(max_tokens=900, ignore_eos=True)


@dataclass(frozen=True)
class Keyed:
    """A server that wants keys and takes little."""

    live: Live
    use: str
    admin: str


@pytest.fixture(scope="module")
def keyed(folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Keyed]:
    settings = tiny_settings(
        tmp_path_factory.mktemp("keyed"),
        admin_key="an-admin-key-from-the-environment",
        adapters=folders["math"].parent,
        max_waiting=1,
        max_body=SMALL_BODY,
    )
    with serving(settings) as live:
        store = live.container.store
        _, use = store.create_key("someone", "use")
        _, admin = store.create_key("boss", "admin")
        yield Keyed(live, use, admin)


@pytest.fixture(params=KINDS)
def nobody(request: pytest.FixtureRequest, keyed: Keyed) -> Asker:
    """Each client of it, without a key."""
    return Asker(keyed.live.url, request.param == "AsyncClient")


@pytest.fixture
def admin(nobody: Asker, keyed: Keyed) -> Asker:
    """Each client of it, with a key that opens everything."""
    return nobody.with_key(keyed.admin)


def raised(ask: Asker, error_class: type[StatusError], use: Callable[[Any], Any]) -> StatusError:
    """The error, which is of this very class and was told by the server of that client."""
    with pytest.raises(StatusError) as caught:
        ask(use)
    assert type(caught.value) is error_class, caught.value
    assert caught.value.request_id
    return caught.value


def test_keys(keyed: Keyed, nobody: Asker) -> None:
    refused = raised(nobody, UnauthorizedError, lambda c: c.generate("hello"))
    assert (refused.status, refused.type) == (401, "unauthorized")
    refused = raised(nobody, UnauthorizedError, lambda c: c.models())
    assert (refused.status, refused.type) == (401, "unauthorized")
    user = nobody.with_key(keyed.use)
    refused = raised(user, ForbiddenError, lambda c: c.adapters.list())
    assert (refused.status, refused.type) == (403, "forbidden")
    assert user(lambda c: c.models())


def test_what_is_not_there(admin: Asker) -> None:
    for use in (
        lambda c: c.adapters.show("gone"),
        lambda c: c.model("gone"),
        lambda c: c.generate("hello", mixture=Mixture(gone=1.0)),
        lambda c: c.chat([{"role": "user", "content": "hello"}], model="gone"),
    ):
        refused = raised(admin, NotFoundError, use)
        assert (refused.status, refused.type) == (404, "not_found")
        assert "gone" in str(refused) == refused.message


def test_methods_and_bodies_that_a_route_does_not_take(admin: Asker) -> None:
    def use(method: str, path: str, **options: Any) -> Callable[[Any], Any]:
        return lambda c: c.send(Call(Request(method=method, path=path, **options), bytes))

    refused = raised(admin, MethodNotAllowedError, use("PATCH", "/info"))
    assert (refused.status, refused.type) == (405, "method_not_allowed")
    refused = raised(admin, UnsupportedContentError, use("POST", "/admin/adapters", json={}))
    assert (refused.status, refused.type) == (415, "content_type")


def test_fields_that_the_server_refuses_are_named(admin: Asker) -> None:
    for use in (
        lambda c: c.generate("hello", {"top_k": -1}),
        lambda c: c.score("hello", ["a"], priority=1000),
        lambda c: c.complete("hello", {"top_k": -1}),
    ):
        refused = raised(admin, InvalidRequestError, use)
        assert (refused.status, refused.type) == (422, "validation")
        assert refused.field is not None
        assert refused.field in refused.message
    assert refused.field == "top_k"


def test_an_adapter_of_another_base_is_refused(
    folders: dict[str, Path], admin: Asker, tmp_path: Path
) -> None:
    other = shutil.copytree(folders["math"], tmp_path / "other")
    weights = load_file(other / "adapter_model.safetensors")
    renamed = {name.replace("layers.1.", "layers.9."): one for name, one in weights.items()}
    save_file(renamed, other / "adapter_model.safetensors")
    refused = raised(admin, AdapterRefusedError, lambda c: c.adapters.publish(other))
    assert (refused.status, refused.type) == (422, "invalid_adapter")
    assert isinstance(refused, InvalidRequestError)
    report = admin(lambda c: c.adapters.check(other))
    assert not report.loads
    assert report.problems


def test_a_pinned_adapter_is_not_deleted(admin: Asker) -> None:
    admin(lambda c: c.adapters.pin("code"))
    refused = raised(admin, ConflictError, lambda c: c.adapters.delete("code"))
    assert (refused.status, refused.type) == (409, "conflict")
    admin(lambda c: c.adapters.pin("code", pinned=False))


def test_more_than_the_server_takes(admin: Asker) -> None:
    refused = raised(admin, TooLargeError, lambda c: c.generate("a" * SMALL_BODY))
    assert (refused.status, refused.type) == (413, "too_large")
    with pytest.raises(HeadTooLargeError) as caught:  # before the request has an id
        admin.with_key("a" * SMALL_BODY)(lambda c: c.info())
    assert (caught.value.status, caught.value.type) == (431, "head_too_large")


def test_bytes_that_are_lost(
    keyed: Keyed, admin: Asker, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = make_lora_folder(tmp_path_factory.mktemp("lost") / "lost", seed=len(admin.kind))
    digest = admin(lambda c: c.adapters.publish(folder)).digest.removeprefix("sha256:")
    blobs = keyed.live.container.settings.cache / "store" / "blobs"
    (blob,) = (file for file in blobs.rglob("*.safetensors") if digest in str(file))
    blob.parent.chmod(0o700)
    blob.unlink()
    refused = raised(admin, GenerationFailedError, lambda c: c.adapters.load("lost"))
    assert (refused.status, refused.type) == (424, "generation")


def test_the_request_s_own_timeout(keyed: Keyed, admin: Asker) -> None:
    with keyed.live.paused():
        ended = raised(admin, RequestTimeoutError, lambda c: c.generate("hello", timeout=SOON))
    assert (ended.status, ended.type) == (408, "timeout")


def test_too_many_at_once_are_told_when_to_come_back(keyed: Keyed, admin: Asker) -> None:
    admission = keyed.live.container.admission
    with keyed.live.paused():
        waiting = threading.Thread(target=admin, args=[lambda c: c.generate("hello")])
        waiting.start()
        wait_for(lambda: admission.waiting == 1)
        refused = raised(admin, OverloadedError, lambda c: c.generate("hello"))
    waiting.join()
    assert (refused.status, refused.type) == (429, "overloaded")
    assert refused.retry_after is not None
    assert refused.retry_after > 0


def test_a_server_that_stops_says_when_to_come_back(keyed: Keyed, admin: Asker) -> None:
    draining = keyed.live.container.draining
    draining.is_on = True
    try:
        refused = raised(admin, UnavailableError, lambda c: c.generate("hello"))
    finally:
        draining.is_on = False
    assert (refused.status, refused.type, refused.retry_after) == (503, "stopping", 2.0)
    assert isinstance(refused, ServerFaultError)


def test_a_stream_that_is_refused_raises_before_its_first_piece(admin: Asker) -> None:
    for use in (
        lambda c: c.stream("hello", mixture=Mixture(gone=1.0)),
        lambda c: c.stream_chat([{"role": "user", "content": "hello"}], model="gone"),
    ):
        with pytest.raises(NotFoundError, match="gone"):
            admin.pieces(use)


def test_a_stream_that_fails_raises_behind_its_pieces(keyed: Keyed) -> None:
    """The engine stands still behind the first piece; longer, until that one comes in time."""
    with Client(keyed.live.url, keyed.admin, timeout=HANG_SECONDS) as client:
        for exponent in range(12):
            pieces, ended = held(client, keyed.live, timeout=0.25 * 2**exponent)
            assert (ended.status, ended.type) == (408, "timeout")
            assert ended.request_id
            if pieces:
                return
    raise AssertionError("no piece came")


def held(client: Client, live: Live, timeout: float) -> tuple[list[Piece], StatusError]:
    """The pieces of a stream whose engine stands still behind the first, and how it ends."""
    pieces: list[Piece] = []
    try:
        with ExitStack() as stack:
            for piece in client.stream("hello", LONG, timeout=timeout):
                if not pieces:
                    stack.enter_context(live.paused())
                pieces.append(piece)
    except RequestTimeoutError as error:
        return pieces, error
    raise AssertionError("it did not end")


def test_every_kind_of_error_is_known() -> None:
    table = {kind: status for _, status, kind in TABLE} | {
        kind: status for status, kind in _HTTP_TYPES.items()
    }
    assert {kind: status for kind, (status, _) in TYPES.items()} == table | {
        "internal": 500,
        "store_full": 507,
    }
    raised_classes = {error_class for _, error_class in TYPES.values()}
    below = {one for one in vars(errors).values() if isinstance(one, type)}
    assert raised_classes == {one for one in below if issubclass(one, StatusError)}


@pytest.mark.parametrize("kind", TYPES)
def test_each_kind_has_its_class_in_bodies_and_in_streams(
    foreign: Foreign, stranger: Asker, kind: str
) -> None:
    status, error_class = TYPES[kind]
    native = {"error": "so it is", "error_type": kind}
    is_clients = status < 500 and status not in (408, 429)
    detail = {"message": "so it is", "param": None, "code": kind}
    openai = {"error": detail | {"type": "invalid_request_error" if is_clients else kind}}
    for body, use, stream in (
        (native, lambda c: c.generate("a"), lambda c: c.stream("a")),
        (openai, lambda c: c.models(), lambda c: c.stream_complete("a", model="b")),
    ):
        foreign.answer(json.dumps(body).encode(), status=status)
        with pytest.raises(StatusError) as caught:
            stranger(use)
        with pytest.raises(StatusError) as at_once:
            stranger.pieces(stream)
        foreign.answer(b"data: %b\n\n" % json.dumps(body).encode(), "text/event-stream")
        with pytest.raises(StatusError) as within:
            stranger.pieces(stream)
        for error in (caught.value, at_once.value, within.value):
            assert type(error) is error_class
            assert (error.status, error.type, str(error)) == (status, kind, "so it is")


@pytest.mark.parametrize("status", [302, 418, 429, 500, 502, 503, 599])
def test_an_error_of_a_proxy_has_its_status(foreign: Foreign, stranger: Asker, status: int) -> None:
    foreign.answer(b"<html>no\xff", "text/html", status)
    with pytest.raises(StatusError, match=f"answered {status}: <html>no") as caught:
        stranger(lambda c: c.info())
    assert (caught.value.status, caught.value.type) == (status, None)
    assert isinstance(caught.value, ServerFaultError) is (status >= HTTPStatus(500))


def test_a_client_that_waits_no_longer(keyed: Keyed, nobody: Asker) -> None:
    options = {"api_key": keyed.admin, "timeout": SOON}
    impatient = Asker(nobody.url, nobody.is_async, options)
    with keyed.live.paused(), pytest.raises(TimedOutError, match=nobody.url):
        impatient(lambda c: c.generate("hello"))
    admission = keyed.live.container.admission
    wait_for(lambda: not (admission.waiting or admission.live))
