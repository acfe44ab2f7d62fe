"""The headers that tell browsers what an answer may do: nothing, unless it is one of our pages."""

import base64
import hashlib
import re
from collections.abc import Awaitable
from http import HTTPStatus

from starlette.types import Message, Scope, Send

_POLICY = b"content-security-policy"
_ANYWHERE = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-frame-options", b"DENY"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"cross-origin-opener-policy", b"same-origin"),
)
# What is shown of a tile stays with who sent it; who may see the metrics now may not tomorrow.
ANSWER = (
    *_ANYWHERE,
    (_POLICY, b"default-src 'none'; frame-ancestors 'none'"),
    (b"cache-control", b"no-store"),
)
# They are the same for everybody, and bring a policy of their own (`serving/page.py`).
_PAGES = ("/", "/docs")
ASSETS = "/docs/assets"

_SCRIPT = re.compile("<script>(.*?)</script>", re.DOTALL)
_STYLE = re.compile("<style>(.*?)</style>", re.DOTALL)


def fortified(scope: Scope, send: Send) -> Send:
    """A `send` that adds the headers to the answer of this request."""
    path = scope["path"]
    ours = path in _PAGES or path.startswith(f"{ASSETS}/")

    # Not `async`: whoever calls awaits what `send` returns, without a coroutine in between.
    def sending(message: Message) -> Awaitable[None]:
        if message["type"] == "http.response.start":
            # An error below a page's path is no page, and brings no policy.
            added = _ANYWHERE if ours and message["status"] < HTTPStatus.BAD_REQUEST else ANSWER
            # A new list: the other one may belong to an answer that is sent again.
            message["headers"] = [*message.get("headers", ()), *added]
        return send(message)

    return sending


def policy(html: str, **sources: str) -> str:
    """A policy for a page of ours: its own inline scripts and styles by hash, else `sources`.

    Nothing of what somebody manages to write into the page is among the hashes, so it never runs.
    """
    directives = {
        "default-src": "'none'",
        "script-src": _hashes(_SCRIPT, html),
        "style-src": _hashes(_STYLE, html),
    }
    for name, value in sources.items():
        directive = name.replace("_", "-")
        directives[directive] = " ".join(filter(None, [directives.get(directive), value]))
    directives |= {"base-uri": "'none'", "form-action": "'none'", "frame-ancestors": "'none'"}
    return "; ".join(f"{name} {value}" for name, value in directives.items() if value)


def _hashes(element: re.Pattern[str], html: str) -> str:
    return " ".join(
        f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
        for text in element.findall(html)
    )
