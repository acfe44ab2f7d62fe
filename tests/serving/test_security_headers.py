"""What browsers are told about each answer; and that our own pages still work."""

import base64
import hashlib
import socket
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from serving.security_headers import ANSWER, policy
from tests.serving import api_keys
from tests.serving.gateway import served, settings_for, started, tile

EVERYWHERE = {
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "x-frame-options": "DENY",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
}
NOTHING = {
    "content-security-policy": "default-src 'none'; frame-ancestors 'none'",
    "cache-control": "no-store",
}
PAGES = ("/", "/docs")


@pytest.fixture(scope="module")
def guarded(
    shared_repository: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[TestClient]:
    """A gateway that asks for keys and lets the pages of one origin ask."""
    file = tmp_path_factory.mktemp("keys") / "keys.json"
    api_keys.write(file, api_keys.made("a")[1])
    settings = settings_for(shared_repository, api_keys_file=file, cors_origins="https://a.example")
    with started(settings) as client:
        yield client


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("POST", "/labels", 200),
        ("POST", "/labels?x=1", 422),
        ("GET", "/labels", 405),
        ("GET", "/healthz", 200),
        ("GET", "/models", 200),
        ("GET", "/metrics", 200),
        ("GET", "/openapi.json", 200),
        ("GET", "/absent", 404),
        ("POST", "/", 405),
        ("GET", "/docs/assets/absent.js", 404),
    ],
)
def test_an_answer_is_no_page(client: TestClient, method: str, path: str, status: int) -> None:
    body = tile("blue") if method == "POST" else None
    answer = client.request(method, path, content=body, headers={"Content-Type": "image/png"})
    assert answer.status_code == status
    assert told(answer.headers.multi_items()) == EVERYWHERE | NOTHING


def told(headers: list[tuple[str, str]]) -> dict[str, str]:
    """The headers that are meant here, of which none may be sent twice."""
    found = [(name.lower(), value) for name, value in headers]
    meant = [one for one in found if one[0] in EVERYWHERE | NOTHING]
    assert len(meant) == len(dict(meant))
    return dict(meant)


@pytest.mark.parametrize("path", ["/models", "/labels", "/absent"])
def test_so_is_a_refusal(guarded: TestClient, path: str) -> None:
    for method in ("GET", "POST", "OPTIONS"):
        answer = guarded.request(method, path)
        assert answer.status_code == 401
        assert told(answer.headers.multi_items()) == EVERYWHERE | NOTHING


def test_so_is_a_preflight(guarded: TestClient) -> None:
    wanted = {"Origin": "https://a.example", "Access-Control-Request-Method": "POST"}
    answer = guarded.options("/labels", headers=wanted)
    assert answer.status_code == 200
    assert told(answer.headers.multi_items()) == EVERYWHERE | NOTHING


def test_so_is_what_never_reaches_the_app(shared_repository: Path) -> None:
    with (
        served(settings_for(shared_repository)) as address,
        socket.create_connection(address, 10) as connection,
    ):
        connection.sendall(b"no HTTP\r\n\r\n")
        answer = b"".join(iter(lambda: connection.recv(4096), b""))
    assert b" 400 " in answer.split(b"\r\n")[0]
    for name, value in ANSWER:
        assert answer.count(name + b": " + value + b"\r\n") == 1


class Page(HTMLParser):
    """What a page brings that a policy has to allow."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=False)
        self.inline: dict[str, list[str]] = {"script": [], "style": []}
        self.sources: list[str] = []
        self.handlers: list[str] = []
        self._inside = ""
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        named = dict(attrs)
        self.handlers += [name for name in named if name.startswith("on") or name == "style"]
        if source := named.get("src") or (named.get("href") if tag == "link" else None):
            self.sources.append(source)
        elif tag in self.inline:
            self._inside = tag
            self.inline[tag].append("")

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside:
            self.inline[self._inside][-1] += data


def directives(text: str) -> dict[str, list[str]]:
    return {words[0]: words[1:] for words in (one.split() for one in text.split(";"))}


def hashed(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


@pytest.mark.parametrize("path", PAGES)
def test_a_page_runs_its_own_scripts_and_no_others(client: TestClient, path: str) -> None:
    answer = client.get(path)
    assert answer.status_code == 200
    assert told(answer.headers.multi_items()).items() >= EVERYWHERE.items()
    page = Page(answer.text)
    rules = directives(answer.headers["Content-Security-Policy"])
    # What is inside the elements of the page as it was served, and nothing written by hand.
    assert page.inline["script"]
    hashes = {hashed(script) for script in page.inline["script"]}
    assert set(rules["script-src"]) - {"'self'"} == hashes
    assert not page.handlers, "no policy without 'unsafe-inline' lets these run"
    for style in page.inline["style"]:
        assert hashed(style) in rules["style-src"]
    if "'unsafe-inline'" in rules["style-src"]:
        # Browsers ignore it beside a hash.
        assert not [one for one in rules["style-src"] if one.startswith("'sha")]
    assert rules["default-src"] == rules["base-uri"] == rules["form-action"] == ["'none'"]
    assert rules["frame-ancestors"] == ["'none'"]
    assert rules["connect-src"] == ["'self'"], "the page asks the gateway and nobody else"


def test_the_demonstration_allows_inline_code_by_hash_alone(client: TestClient) -> None:
    page = client.get("/")
    assert "unsafe" not in page.headers["Content-Security-Policy"]
    rules = directives(page.headers["Content-Security-Policy"])
    assert "'self'" not in rules["script-src"]
    assert rules["img-src"] == ["blob:", "data:"]
    assert all(source.startswith("data:") for source in Page(page.text).sources)


def test_the_reference_loads_from_the_gateway_alone(client: TestClient) -> None:
    page = client.get("/docs")
    sources = Page(page.text).sources
    assert len(sources) == 3
    for source in sources:
        assert source.startswith("/docs/assets/")
        asset = client.get(source)
        assert asset.status_code == 200
        assert told(asset.headers.multi_items()) == EVERYWHERE


def test_another_script_is_not_among_the_hashes() -> None:
    html = "<style>a{}</style><script>one()</script>"
    rules = directives(policy(html, img_src="data:"))
    assert rules["script-src"] == [hashed("one()")]
    assert rules["style-src"] == [hashed("a{}")]
    assert directives(policy("<p>"))["default-src"] == ["'none'"]
    assert "script-src" not in directives(policy("<p>"))
