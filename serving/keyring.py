"""The keys that a running gateway knows; its file is followed without a restart."""

import logging
import time
from pathlib import Path

from serving import keys_file
from serving.keys import Key, KeyList, digest
from serving.settings import PREFIX, Settings
from tilesight.errors import ConfigError

log = logging.getLogger("tilesight.keys")

_LOOK_S = 1.0


class Keyring:
    """Keys by the hash of their token, from a file, from the environment, or from both."""

    def __init__(self, path: Path | None, document: str | None) -> None:
        """The keys of the file and of the JSON document.

        Raises:
            ConfigError: one of the two is not a list of keys, or they share a name.
        """
        self._path = path
        self._given = KeyList.parse(document, f"{PREFIX}API_KEYS") if document else KeyList()
        self._seen = _signature(path)
        self._look_at = time.monotonic() + _LOOK_S
        self._keys = self._read()

    @classmethod
    def of(cls, settings: Settings) -> "Keyring | None":
        """The keys that the settings name; None where they name none: then all is open.

        Raises:
            ConfigError: as above.
        """
        secret = settings.api_keys
        if settings.api_keys_file is None and secret is None:
            return None
        document = None if secret is None else secret.get_secret_value()
        if document == "":
            raise ConfigError(f"{PREFIX}API_KEYS: empty; unset it to ask for no keys")
        return cls(settings.api_keys_file, document)

    def find(self, token: bytes) -> Key | None:
        """The key of the token, revoked and expired ones too; None where there is none.

        Looking a hash up takes a time that depends on the hash, not on the token. Who measures
        it and learns the first bits of a hash on the list knows nothing of the token: to come
        nearer he would need tokens whose SHA-256 begins as he wishes, and then still the rest.
        Python's dictionary compares whole hashes only when 64 bits of a keyed hash agree, so
        even those first bits do not show. Nothing here compares a token with a token.
        """
        now = time.monotonic()
        if now >= self._look_at:
            self._look_at = now + _LOOK_S
            self._follow()
        wanted = digest(token)
        return self._keys.get(wanted) if wanted else None

    def _follow(self) -> None:
        """Reads the file again when it is another one; a broken one changes nothing."""
        signature = _signature(self._path)
        if signature == self._seen:
            return
        # Remembered before it is read: a broken file is complained of once.
        self._seen = signature
        try:
            self._keys = self._read()
        except ConfigError as error:
            log.error("keys not read, those before stay", extra={"reason": str(error)})
        else:
            log.info("keys read", extra={"keys": len(self._keys)})

    def _read(self) -> dict[str, Key]:
        found = self._given
        if self._path:
            origin = f"{self._path} and {PREFIX}API_KEYS"
            found = found.with_those_of(keys_file.read(self._path), origin)
        return {key.sha256: key for key in found.keys}


def _signature(path: Path | None) -> tuple[int, ...] | None:
    """What changes when the file does; None where there is no file."""
    try:
        found = path.stat() if path else None
    except OSError:
        return None
    # The inode: a file renamed over another one may be as old and as long.
    return (found.st_mtime_ns, found.st_ctime_ns, found.st_ino, found.st_size) if found else None
