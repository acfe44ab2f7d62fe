"""The file of API keys: read whole, changed by one rename."""

import os
import tempfile
from collections.abc import Callable
from pathlib import Path

from serving.keys import KeyList
from tilesight.errors import ConfigError
from tilesight.locks import held

# Only hashes are inside, but whoever can write them lets himself in.
_MODE = 0o600


def read(path: Path) -> KeyList:
    """The keys of the file.

    Raises:
        ConfigError: it cannot be read, or a field is wrong; the message names both.
    """
    try:
        text = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from error
    return KeyList.parse(text, str(path))


def change(path: Path, how: Callable[[KeyList], KeyList]) -> KeyList:
    """The keys after the change, which is written whole or not at all.

    A new file is its owner's alone; one that exists keeps its owner and its mode, else a key
    revoked by root would leave a file that the gateway can no longer read.

    Raises:
        ConfigError: the file cannot be read or written.
    """
    try:
        # A link stays one: else the gateway would go on reading the file that it pointed to.
        real = path.resolve()
        real.parent.mkdir(parents=True, exist_ok=True)
        with held(real.with_name(f".{real.name}.lock")):
            changed = how(read(path) if real.exists() else KeyList())
            _write(real, changed.model_dump_json(indent=2) + "\n")
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from error
    return changed


def _write(path: Path, text: str) -> None:
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    temporary = Path(name)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            _take_over(path, file.fileno())
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _take_over(path: Path, file: int) -> None:
    """Gives the new file the owner and the mode of the one that it replaces."""
    try:
        before = path.stat()
    except FileNotFoundError:
        os.fchmod(file, _MODE)
        return
    now = os.fstat(file)
    if (now.st_uid, now.st_gid) != (before.st_uid, before.st_gid):
        os.fchown(file, before.st_uid, before.st_gid)
    os.fchmod(file, before.st_mode & 0o777)
