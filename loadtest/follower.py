"""A gateway and the repository that it follows: changing the version of a model that is served."""

import json
import time
import urllib.request
from pathlib import Path

from tilesight.repository import Repository

_TIMEOUT_S = 60.0


class Follower:
    """A gateway, and the repository that it follows."""

    def __init__(self, url: str, repository: Path, model: str) -> None:
        """Nothing is asked yet; the versions that take turns are the model's two highest.

        Raises:
            ValueError: it has fewer.
        """
        self._url, self._repository, self._model = url, Repository(repository), model
        versions = self._repository.versions(model)
        if len(versions) < 2:
            raise ValueError(f"{repository}: {model} has no two versions that could take turns")
        self.first, self.second = versions[-2:]

    def serve(self, version: int) -> float:
        """Promotes the version, or rolls back to it; seconds until the gateway serves it.

        Raises:
            TimeoutError: it did not follow.
        """
        if version in self._repository.state().previous(self._model):
            self._repository.rollback([self._model])
        else:
            self._repository.promote({self._model: version})
        started = time.perf_counter()
        while self._served() != version:
            if time.perf_counter() - started > _TIMEOUT_S:
                raise TimeoutError(f"version {version} was not served after {_TIMEOUT_S:g} s")
            time.sleep(0.02)
        return time.perf_counter() - started

    def _served(self) -> int:
        with urllib.request.urlopen(f"{self._url}/models", timeout=_TIMEOUT_S) as response:
            models = json.load(response)["models"]
        return int(next(one["version"] for one in models if one["name"] == self._model))
