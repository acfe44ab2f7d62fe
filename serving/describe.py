"""`tilesight describe`: the gateway's own engine, asked about files, for people to read."""

from collections.abc import Sequence
from pathlib import Path

import anyio
from pydantic import BaseModel, TypeAdapter
from rich.console import Console
from rich.table import Table
from rich.text import Text

from serving.answers import CaptionAnswer, LabelsAnswer, Results, VqaAnswer, one_or_many
from serving.caption import CaptionOptions, caption
from serving.engine import Engine
from serving.labels import LabelsOptions, label
from serving.metrics import Metrics
from serving.settings import Settings
from serving.vqa import answer
from tilesight.errors import TilesightError

_BAR = 24


class Description(BaseModel):
    """All that the models say of one file."""

    path: str
    labels: LabelsAnswer
    caption: CaptionAnswer
    vqa: VqaAnswer | None


_JSON = TypeAdapter[Description | Results[Description]](Description | Results[Description])


def run(settings: Settings, paths: Sequence[Path], questions: Sequence[str], as_json: bool) -> bool:
    """Whether every tile could be described; prints what was found, and on stderr what was not."""
    return anyio.run(_run, settings, paths, questions, as_json)


async def _run(
    settings: Settings, paths: Sequence[Path], questions: Sequence[str], as_json: bool
) -> bool:
    # A few tiles are not worth a measurement.
    engine = Engine(settings.model_copy(update={"autotune_s": 0}), Metrics())
    out, err = Console(), Console(stderr=True)
    found: list[Description] = []
    try:
        await engine.models.start()
        for path in paths:
            try:
                description = await describe(engine, path, questions)
            except TilesightError as error:
                err.print(Text(f"{path}: {error}", style="red"), soft_wrap=True)
                continue
            found.append(description)
            if not as_json:
                show(out, description)
    finally:
        await engine.models.close()
    if as_json and found:
        answered = _JSON.dump_json(one_or_many(found), indent=2, exclude_none=True).decode()
        out.print(answered, markup=False, highlight=False, soft_wrap=True)
    return len(found) == len(paths)


async def describe(engine: Engine, path: Path, questions: Sequence[str]) -> Description:
    """What the models say of the file.

    Raises:
        TilesightError: it is not a tile, or a question cannot be asked.
    """
    tile = [await anyio.Path(path).read_bytes()]
    return Description(
        path=str(path),
        labels=(await label(engine, tile, LabelsOptions(), engine.ask()))[0],
        caption=(await caption(engine, tile, CaptionOptions(), engine.ask()))[0],
        vqa=(await answer(engine, tile, questions, engine.ask()))[0] if questions else None,
    )


def show(console: Console, description: Description) -> None:
    """Prints the path, the sentence and the tables, then an empty line."""
    tile = description.labels.tile
    size = f"{tile.width} x {tile.height} {tile.format}"
    console.print(Text.assemble((description.path, "cyan"), f"  {size}"), soft_wrap=True)
    console.print(Text(description.caption.caption, "bold"))
    console.print(_labels(description.labels))
    if description.vqa:
        console.print(_answers(description.vqa))
    for warning in _warnings(description):
        console.print(Text(f"warning: {warning}", "yellow"))
    console.print()


def _labels(answered: LabelsAnswer) -> Table:
    table = Table("label", "score", "", "", box=None, header_style="dim")
    for one in answered.labels:
        bar = "█" * round(one.score * _BAR)
        style = "green" if one.present else "dim"
        mark = "present" if one.present else ""
        table.add_row(*(Text(cell, style) for cell in (one.name, f"{one.score:.2f}", bar, mark)))
    return table


def _answers(answered: VqaAnswer) -> Table:
    table = Table("question", "answer", "confidence", "otherwise", box=None, header_style="dim")
    for one in answered.answers:
        others = ", ".join(f"{other.answer} {other.confidence:.2f}" for other in one.alternatives)
        table.add_row(
            Text(one.question),
            Text(one.answer, "bold"),
            Text(f"{one.confidence:.2f}"),
            Text(others, "dim"),
        )
    return table


def _warnings(description: Description) -> list[str]:
    """Each warning once, in the order in which it came."""
    warnings = [*description.labels.warnings, *description.caption.warnings]
    if description.vqa:
        warnings += description.vqa.warnings
    return list(dict.fromkeys(warnings))
