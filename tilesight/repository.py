"""The model repository: which version of each model is promoted, for gateway and Triton alike.

`repository.json` is the one truth. Promoting replaces it by one rename, so models that belong
together change together; every `config.pbtxt` follows from it and can be written again.
"""

import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from tilesight.errors import BundleError
from tilesight.files import write_text
from tilesight.locks import held
from tilesight.manifest import AnswerHead
from tilesight.pairs import check_pairs, graph_sha256, heads_of, made_for, with_encoders
from tilesight.repository_state import Promotion, State, TritonOptions, read_state
from tilesight.versions import Versions

__all__ = [
    "CONFIG_NAME",
    "REPOSITORY_NAME",
    "Change",
    "Promotion",
    "Repository",
    "State",
    "TritonOptions",
]

REPOSITORY_NAME = "repository.json"
CONFIG_NAME = "config.pbtxt"

# Hidden names: this module takes none of them for a model.
_LOCK = ".repository.lock"
_REMOVED = ".removed-"


class Change(NamedTuple):
    """A model that serves another version now, or whose served version is now a promoted one."""

    name: str
    before: int
    after: int


@dataclass(frozen=True)
class Repository(Versions):
    """The models of a folder, the versions that are promoted, and how Triton runs them."""

    @property
    def state_path(self) -> Path:
        """The file that says which versions are promoted."""
        return self.root / REPOSITORY_NAME

    def config_path(self, name: str) -> Path:
        """The model's `config.pbtxt`."""
        return self.model_folder(name) / CONFIG_NAME

    def state(self) -> State:
        """What `repository.json` says; the defaults where it is absent.

        Raises:
            BundleError: the file cannot be read.
            ManifestError: naming the field that is wrong.
        """
        return read_state(self.state_path)

    def current(self, name: str, state: State | None = None) -> int:
        """The promoted version; the highest one where the model was never promoted.

        Who asks for several models reads `state()` once and passes it, so that a promotion in
        between cannot give one model of before and one of after.

        Raises:
            BundleError: the model has no version, or the promoted one is missing.
        """
        version = self._require_chosen(name, state or self.state())
        folder = self.folder(name, version)
        if not folder.is_dir():
            raise BundleError(f"{self.state_path}: promoted.{name}.version: {folder} is missing")
        return version

    def _chosen(self, name: str, state: State) -> int | None:
        """What `state` means for the model, whether or not its folder is there."""
        if name in state.promoted:
            return state.promoted[name].version
        return max(self.versions(name), default=None)

    def _require_chosen(self, name: str, state: State) -> int:
        version = self._chosen(name, state)
        if version is None:
            raise BundleError(
                f"{self.model_folder(name)}: no version of this model (folders named 1, 2, ...)"
            )
        return version

    def _served(self, state: State) -> dict[str, int]:
        """The version of each model that `state` means."""
        chosen = {name: self._chosen(name, state) for name in self.models()}
        return {name: version for name, version in chosen.items() if version is not None}

    def config_text(self, name: str, state: State | None = None) -> str:
        """What the model's `config.pbtxt` has to hold.

        Raises:
            BundleError: the model has no version that could be served.
            ManifestError: a manifest or `repository.json` cannot be read.
        """
        # Imported here: who only reads the repository does not need Triton's client.
        from tilesight.triton_config import config_text

        state = state or self.state()
        version = self.current(name, state)
        manifest = self.manifest(name, version)
        return config_text(manifest, self.digests(name), version, state.triton)

    def stale_configs(self, names: Iterable[str] | None = None) -> dict[str, str]:
        """The models whose `config.pbtxt` is not what would be written, and what is wrong with it.

        Raises:
            BundleError: a model has no version that could be served.
            ManifestError: a manifest or `repository.json` cannot be read.
        """
        state = self.state()
        names = self.models() if names is None else names
        found = {name: self._stale(name, self.config_text(name, state)) for name in names}
        return {name: problem for name, problem in found.items() if problem}

    def _stale(self, name: str, expected: str) -> str | None:
        path = self.config_path(name)
        try:
            text = path.read_bytes()
        except FileNotFoundError:
            return f"{path}: missing"
        if text == expected.encode():
            return None
        return f"{path}: {_first_difference(text.decode(errors='replace'), expected)}"

    def promote(self, targets: Mapping[str, int]) -> list[Change]:
        """Serves the named versions from now on; returns what changed.

        All of them are verified first and change together. A question head brings the encoder
        along that it was made for.

        Raises:
            BundleError: a version is missing, damaged, or does not fit its encoder or head.
            ManifestError: a manifest or `repository.json` cannot be read.
        """
        with self.locked():
            state = self.state()
            for name, version in targets.items():
                self.manifest(name, version)
            served = self._served(state)
            wanted = with_encoders(self.catalogue(), targets, served)
            return self._serve(wanted, state.promoting(wanted, served), state)

    def rollback(self, names: Iterable[str]) -> list[Change]:
        """Serves the versions that were served before; returns what changed.

        A model that nothing was served before goes to its next lower version. Encoder and question
        head go back together: to the head's version before, or, where only the encoder is named,
        to the head that was made for the encoder's version before.

        Raises:
            BundleError: there is no version before, or it cannot be served.
            ManifestError: a manifest or `repository.json` cannot be read.
        """
        with self.locked():
            state = self.state()
            wanted = self._before(set(names), state)
            return self._serve(wanted, state.going_back(wanted), state)

    def remove(self, name: str, version: int) -> None:
        """Deletes a version that is not served.

        Raises:
            BundleError: it is missing, it is served, or a kept question head was made for it.
            ManifestError: the served version's manifest or `repository.json` cannot be read.
        """
        with self.locked():
            state = self.state()
            self.require_version(name, version)
            self._require_unused(name, version, state)
            self._sweep()
            # One rename: nobody ever sees a version of which half is gone.
            self.folder(name, version).rename(self.root / f"{_REMOVED}{name}-{version}")
            # Deleted before anything is written: a full disk is a reason to remove versions.
            self._sweep()
            self._commit(state.forgetting(name, version), [name])

    def configure(self, **fields: int) -> TritonOptions:
        """The options that Triton runs the models with, the given fields changed.

        Raises:
            BundleError: a model has no version that could be served.
            ConfigError: a field is unknown or out of its range.
            ManifestError: a manifest or `repository.json` cannot be read.
        """
        with self.locked():
            state = self.state()
            options = state.triton.changed(**fields)
            self._commit(state.model_copy(update={"triton": options}), self.models())
            return options

    def write_configs(self, names: Iterable[str] | None = None) -> list[str]:
        """Writes the `config.pbtxt` of the named models (of all); returns those that changed.

        Raises:
            BundleError: a model has no version that could be served.
            ManifestError: a manifest or `repository.json` cannot be read.
        """
        with self.locked():
            return self._write_configs(self.models() if names is None else names, self.state())

    def _write_configs(self, names: Iterable[str], state: State) -> list[str]:
        texts = {name: self.config_text(name, state) for name in names}
        changed = [name for name, text in texts.items() if self._stale(name, text)]
        for name in changed:
            write_text(self.config_path(name), texts[name])
        return changed

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keeps every other command that changes this repository waiting; not reentrant.

        Raises:
            BundleError: there is no such folder, it cannot be written, the disk is full, or
                another command has been busy with it for half a minute.
        """
        self.require_root()
        try:
            with held(self.root / _LOCK):
                yield
        except OSError as error:
            raise BundleError(
                f"{error.filename or self.root}: {error.strerror or error}"
            ) from error

    def _before(self, names: set[str], state: State) -> dict[str, int]:
        """The versions to go back to; an encoder named beside its head follows the head."""
        catalogue, served = self.catalogue(), self._served(state)
        targets: dict[str, int] = {}
        for name in sorted(names):
            heads = heads_of(catalogue, name, served)
            if names.isdisjoint(heads):
                targets[name] = self._version_before(name, state)
                digest = graph_sha256(self.manifest(name, targets[name]))
                targets |= {head: self._head_before(head, digest, state) for head in heads}
        return with_encoders(catalogue, targets, served)

    def _earlier(self, name: str, state: State) -> list[int]:
        """The versions before the current one, the one to go back to first."""
        # Also where the folder of the current one is gone: that is when one wants to go back.
        current, versions = self._require_chosen(name, state), self.versions(name)
        served = [version for version in state.previous(name) if version in versions]
        return served or [version for version in reversed(versions) if version < current]

    def _version_before(self, name: str, state: State) -> int:
        earlier = self._earlier(name, state)
        if not earlier:
            raise BundleError(f"{name}@{self._chosen(name, state)}: no version before it")
        return earlier[0]

    def _head_before(self, name: str, encoder_sha256: str | None, state: State) -> int:
        """The newest version of the head, up to the current one, for the encoder of the hash."""
        current = self.current(name, state)
        for version in [current, *self._earlier(name, state)]:
            head = self.manifest(name, version).head
            if isinstance(head, AnswerHead) and head.encoder_sha256 == encoder_sha256:
                return version
        raise BundleError(
            f"{name}@{current}: no version before it was made for the encoder to go back to, "
            f"{encoder_sha256}"
        )

    def _serve(self, wanted: Mapping[str, int], after: State, before: State) -> list[Change]:
        """Verifies the versions, then writes them down as promoted."""
        for name, version in wanted.items():
            self.verified(name, version)
        check_pairs(self.catalogue(), self._served(after), wanted.keys())
        served = self._served(before)
        changes = [
            Change(name, served[name], version)
            for name, version in wanted.items()
            if after.promoted[name] != before.promoted.get(name)
        ]
        self._commit(after, wanted)
        return changes

    def _require_unused(self, name: str, version: int, state: State) -> None:
        served = self.current(name, state)
        if version == served:
            raise BundleError(f"{name}@{version} is served; promote another version first")
        # The configuration is written anew from it: better found out before than halfway.
        self.manifest(name, served)
        readers = made_for(self.catalogue(), name, version)
        if readers:
            raise BundleError(
                f"{name}@{version}: {readers[0]} was made for it; remove the head first"
            )

    def _commit(self, state: State, names: Iterable[str]) -> None:
        """Writes the models' configurations, then `repository.json` by one rename."""
        self._write_configs(names, state)
        if not self.state_path.exists() or state != self.state():
            write_text(self.state_path, state.model_dump_json(indent=2) + "\n")

    def _sweep(self) -> None:
        """Deletes what was removed, also by a command that did not get to the end."""
        for folder in self.root.glob(f"{_REMOVED}*"):
            if folder.is_symlink():
                folder.unlink()
            else:
                shutil.rmtree(folder)


def _first_difference(text: str, expected: str) -> str:
    """The first line that is not the expected one, as a sentence."""
    found, wanted = text.splitlines(keepends=True), expected.splitlines(keepends=True)
    shorter = min(len(found), len(wanted))
    number = next((row for row in range(shorter) if found[row] != wanted[row]), shorter)
    one, other = (
        repr(lines[number]) if number < len(lines) else "missing" for lines in (found, wanted)
    )
    return f"line {number + 1} is {one}, generated is {other}"
