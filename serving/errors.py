"""The failures that only a request can meet; `serving/problems.py` gives each its HTTP answer."""

from typing import Any

from tilesight.errors import TilesightError


class RequestError(TilesightError):
    """A well-formed request that asks for something the endpoint cannot give."""

    def __init__(self, message: str, **extensions: Any) -> None:  # noqa: ANN401
        """A failure whose `extensions` become further members of the problem document."""
        super().__init__(message)
        self.extensions = extensions


class MalformedBodyError(RequestError):
    """A body that is not what its Content-Type says: broken JSON, base64 or multipart."""


class MediaTypeError(RequestError):
    """A body of a type that the endpoint does not read."""


class BodyTooLargeError(RequestError):
    """A body of more bytes than the gateway accepts."""


class SlowBodyError(RequestError):
    """A body that was not complete within the time that the gateway waits."""


class UnknownParameterError(RequestError):
    """A query parameter that the endpoint does not have."""


class NotReadyError(RequestError):
    """The models are still being loaded."""


class OverloadedError(RequestError):
    """As many requests as the gateway holds are already waiting."""


class BackendUnavailableError(RequestError):
    """Whatever runs the models does not answer, or has lost them."""


class DeadlineError(RequestError):
    """The answer was not there within the time that a request gets."""


class BackendError(TilesightError):
    """Whatever runs the models failed with a request that was right."""


class ModelOutputError(TilesightError):
    """A model returned something that is not a number."""
