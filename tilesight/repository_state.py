"""`repository.json`: which version of each model is promoted, and how Triton runs the models."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, ValidationError

from tilesight.errors import BundleError, ConfigError, ManifestError
from tilesight.manifest import Strict

STATE_VERSION: Literal[1] = 1

Version = Annotated[int, Field(gt=0)]


class TritonOptions(Strict):
    """How Triton runs each model; all of them alike."""

    instances: int = Field(default=1, ge=1, le=64, description="copies of a model that run at once")
    threads: int = Field(default=2, ge=1, le=256, description="threads of a copy")
    max_batch_size: int = Field(default=32, ge=1, le=1024, description="rows that run together")
    max_queue_delay_us: int = Field(
        default=2000, ge=0, le=1_000_000, description="longest wait for a fuller batch"
    )
    max_queue_size: int = Field(
        default=256, ge=1, le=100_000, description="requests that wait; one more is refused"
    )
    queue_timeout_us: int = Field(
        default=30_000_000,
        ge=1,
        le=3_600_000_000,
        description="longest wait of a request that states no time of its own",
    )

    def changed(self, **fields: int) -> Self:
        """These options with other values in the given fields.

        Raises:
            ConfigError: naming the field that is unknown or out of its range.
        """
        try:
            return type(self)(**{**self.model_dump(), **fields})
        except ValidationError as error:
            raise ConfigError(f"triton: {_problems(error)}") from None


class Promotion(Strict):
    """The version of a model that is served."""

    version: Version
    previous: list[Version] = Field(
        default_factory=list, description="served before it, newest first"
    )


class State(Strict):
    """What `repository.json` holds; a model that it does not name serves its highest version."""

    format_version: Literal[1] = STATE_VERSION
    promoted: dict[str, Promotion] = Field(default_factory=dict)
    triton: TritonOptions = TritonOptions()

    def promoting(self, versions: Mapping[str, int], served: Mapping[str, int]) -> "State":
        """This state with the versions promoted, and those `served` so far kept to go back to."""
        return self._with(
            {name: self._after(name, served[name], version) for name, version in versions.items()}
        )

    def _after(self, name: str, served: int, version: int) -> Promotion:
        history = [served, *self.previous(name)]
        return Promotion(version=version, previous=[one for one in history if one != version])

    def going_back(self, versions: Mapping[str, int]) -> "State":
        """This state with earlier versions; what was served after them is not kept."""
        return self._with(
            {name: self._earlier(name, version) for name, version in versions.items()}
        )

    def _earlier(self, name: str, version: int) -> Promotion:
        previous = self.previous(name)
        if version in previous:
            previous = previous[previous.index(version) + 1 :]
        return Promotion(version=version, previous=previous)

    def forgetting(self, name: str, version: int) -> "State":
        """This state without the version among those to go back to."""
        if name not in self.promoted:
            return self
        kept = [one for one in self.previous(name) if one != version]
        return self._with({name: Promotion(version=self.promoted[name].version, previous=kept)})

    def previous(self, name: str) -> list[int]:
        """The versions that were served before, newest first."""
        return self.promoted[name].previous if name in self.promoted else []

    def _with(self, promotions: Mapping[str, Promotion]) -> "State":
        return State(promoted={**self.promoted, **promotions}, triton=self.triton)


def read_state(path: Path) -> State:
    """What the file says; the defaults where it is absent.

    Raises:
        BundleError: the file cannot be read.
        ManifestError: naming the field that is wrong.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return State()
    except UnicodeDecodeError as error:
        raise ManifestError(f"{path}: not UTF-8: {error}") from None
    except OSError as error:
        raise BundleError(f"{path}: {error.strerror}") from error
    return _parse(text, str(path))


def _parse(text: str, source: str) -> State:
    try:
        version = json.loads(text).get("format_version")
    except (json.JSONDecodeError, AttributeError) as error:
        raise ManifestError(f"{source}: not a JSON object: {error}") from None
    if version != STATE_VERSION:
        newer = isinstance(version, int) and version > STATE_VERSION
        raise ManifestError(
            f"{source}: format_version is {version!r}, this version reads {STATE_VERSION}"
            f"{'; a later Tilesight reads it' if newer else ''}"
        )
    try:
        return State.model_validate_json(text)
    except ValidationError as error:
        raise ManifestError(f"{source}: {_problems(error)}") from None


def _problems(error: ValidationError) -> str:
    return "; ".join(
        f"{'.'.join(str(part) for part in problem['loc'])}: {problem['msg']}"
        for problem in error.errors()
    )
