"""Writes the table of settings in docs/operations.md from the gateway's own description of them.

python docs/settings_table.py
"""

from pathlib import Path
from types import NoneType
from typing import Any, Literal, get_args, get_origin

from pydantic import SecretStr
from pydantic.fields import FieldInfo

from serving.settings import PREFIX, Settings

PAGE = Path(__file__).with_name("operations.md")
BEGIN, END = "<!-- settings: python docs/settings_table.py -->", "<!-- end of settings -->"
_SIGNS = {"ge": "≥ {}", "gt": "> {}", "le": "≤ {}", "lt": "< {}"}


def table() -> str:
    """The rows, in the order of the code."""
    head = ["| Variable | Default | Values | What |", "|---|---|---|---|"]
    return "\n".join(head + [_row(name, field) for name, field in Settings.model_fields.items()])


def _row(name: str, field: FieldInfo) -> str:
    cells = (f"`{PREFIX}{name.upper()}`", _default(field), _values(field), field.description or "")
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def _default(field: FieldInfo) -> str:
    match field.default:
        case None | ():
            return "absent"
        case bool() as flag:
            return f"`{str(flag).lower()}`"
        case float() as number:
            return f"`{number:g}`"
        case value:
            return f"`{value}`"


def _values(field: FieldInfo) -> str:
    """What is taken: words, a kind of value, bounds."""
    kinds = [
        kind for kind in get_args(field.annotation) or [field.annotation] if kind is not NoneType
    ]
    if get_origin(field.annotation) is Literal:
        return ", ".join(f"`{word}`" for word in get_args(field.annotation))
    found = [_bound(one) for one in field.metadata]
    if pattern := next((p for one in field.metadata if (p := getattr(one, "pattern", None))), None):
        return f"`{pattern}`"
    kind: dict[Any, str] = {
        bool: "`true`, `false`",
        int: "whole",
        float: "number",
        SecretStr: "secret, never logged",
    }
    return " ".join([kind.get(kinds[0], "text"), *filter(None, found)])


def _bound(one: Any) -> str:  # noqa: ANN401 - whatever an annotation carries
    return " ".join(
        sign.format(f"{bound:,}")
        for name, sign in _SIGNS.items()
        if (bound := getattr(one, name, None)) is not None
    )


def page() -> str:
    """The page with the table of today."""
    before, rest = PAGE.read_text(encoding="utf-8").split(BEGIN)
    return f"{before}{BEGIN}\n{table()}\n{END}{rest.split(END)[1]}"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
