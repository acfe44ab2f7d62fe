"""What Schemathesis cannot know from the document: which bytes are an image, what is a question.

`schemathesis.toml` beside it names it.
"""

import base64
from typing import Any

import schemathesis
from hypothesis import strategies as st

from tests.serving.gateway import tile

KINDS = {"image/jpeg": "JPEG", "image/png": "PNG", "image/webp": "WEBP", "image/tiff": "TIFF"}
TILES = {
    media: [tile(colour, kind) for colour in ("navy", "olive")] for media, kind in KINDS.items()
}
IMAGE = TILES["image/jpeg"][0]
TEXT = base64.b64encode(IMAGE).decode()
QUESTION = "Are there trees?"

for media, tiles in TILES.items():
    schemathesis.openapi.media_type(media, st.sampled_from(tiles) | st.binary(max_size=64))
schemathesis.openapi.format("binary", st.just(IMAGE) | st.binary(max_size=64))


@schemathesis.hook
def filter_case(context: schemathesis.HookContext, case: schemathesis.Case) -> bool:
    """Whether the case is one: headers that nobody knows are wrong to Schemathesis, not to HTTP."""
    return "x-schemathesis-unknown-property" not in (case.headers or {})


@schemathesis.hook
def before_call(
    context: schemathesis.HookContext, case: schemathesis.Case, kwargs: dict[str, Any]
) -> None:
    """Puts an image and a question where any text stands in a right request."""
    if case.meta is None or not case.meta.generation.mode.is_positive:
        return
    if case.query and case.query.get("question"):
        case.query["question"] = [QUESTION]
    # A form that is changed here is validated anew, and bytes are then no string to Schemathesis.
    if isinstance(case.body, dict) and case.media_type == "application/json":
        for name, value in case.body.items():
            right = QUESTION if name.startswith("question") else TEXT
            case.body[name] = _replaced(value, right)


def _replaced(value: object, right: object) -> object:
    """Something right for each thing that is there."""
    if isinstance(value, list):
        return [right for _ in value]
    return value if value is None else right
