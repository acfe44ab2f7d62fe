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


class WishError(RequestError):
    """A lane or a deadline that cannot be given; the header is named."""


class MalformedRequestError(RequestError):
    """Bytes that are no HTTP, or HTTP whose end two servers would not find in the same place."""


class TransferCodingError(RequestError):
    """A body packed in a way that is not unpacked here."""


class HeaderTooLargeError(RequestError):
    """A header of more bytes or of more lines than the gateway reads."""


class SlowHeaderError(RequestError):
    """A header that was not complete within the time that the gateway waits."""


class ConnectionsError(RequestError):
    """As many connections as the gateway holds are open."""


class StorageError(RequestError):
    """A large body could not be put on the disk."""


class AmbiguousKeyError(RequestError):
    """Several headers that carry a key: what one server reads, another may not."""


class UnauthorizedError(RequestError):
    """No API key, or one that is unknown, revoked or expired."""


class ForbiddenError(RequestError):
    """An API key that may not do this."""


class TooManyRequestsError(RequestError):
    """A client that asks for more than its share."""


class NotReadyError(RequestError):
    """The models are still being loaded."""


class OverloadedError(RequestError):
    """As many requests as the gateway holds are already waiting."""


class BackendUnavailableError(RequestError):
    """Whatever runs the models does not answer, or has lost them."""


class DeadlineError(RequestError):
    """The answer was not there within the time that a request gets."""


class WorkerError(TilesightError):
    """Workers that cannot serve."""


class BackendError(TilesightError):
    """Whatever runs the models failed with a request that was right."""


class ModelOutputError(TilesightError):
    """A model returned something that is not a number."""


def not_a_number(model: str, output: str) -> ModelOutputError:
    """The failure that names the model's output."""
    return ModelOutputError(f"{model}: {output} holds a value that is not a number")
