"""Whether the gateway would take the variables that a file of the deployment sets."""

import os

import pytest

from serving.settings import Settings

PREFIX = "TILESIGHT_"


def taken(variables: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Settings:
    """The settings with these variables, and no others, in the environment."""
    for name in [name for name in os.environ if name.startswith(PREFIX)]:
        monkeypatch.delenv(name)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    return Settings.from_environment()
