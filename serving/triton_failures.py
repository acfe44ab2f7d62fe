"""What Triton's errors mean: its statuses say little, so its messages are read as well."""

from typing import Any

from tritonclient.utils import InferenceServerException

from serving.errors import BackendError, BackendUnavailableError, DeadlineError, OverloadedError
from serving.repository import Bundle
from tilesight.errors import BundleError, ConfigError, TilesightError

_RETRY_S = 1


def _is(error: InferenceServerException, *statuses: str) -> bool:
    return str(error.status()).removeprefix("StatusCode.") in statuses


def failure(error: InferenceServerException) -> TilesightError:
    """What a failed request means for whoever asked."""
    message = str(error.message())
    if _is(error, "DEADLINE_EXCEEDED") or "timeout expired" in message:
        return DeadlineError("Triton did not answer in time")
    if "maximum queue size" in message:
        return OverloadedError("Triton's queue of this model is full", retry_after=_RETRY_S)
    if _is(error, "UNAVAILABLE", "NOT_FOUND", "CANCELLED") or "Stub process" in message:
        return unavailable()
    return BackendError(f"Triton: {error.status()}: {message}")


def unavailable() -> BackendUnavailableError:
    """The failure as callers see it; address and reason are in its cause, for the log."""
    return BackendUnavailableError("Triton does not answer", retry_after=_RETRY_S)


def refusal(bundle: Bundle[Any], error: InferenceServerException) -> TilesightError:
    """Why the server did not load or unload a version."""
    message = str(error.message())
    if "protocol is restricted" in message:
        return ConfigError(f"TILESIGHT_TRITON_KEY: Triton does not accept it: {message}")
    if "load / unload is not allowed" in message:
        return ConfigError(f"TILESIGHT_TRITON_CONTROL: true, and Triton says: {message}")
    if _is(error, "UNAVAILABLE", "DEADLINE_EXCEEDED", "CANCELLED"):
        return unavailable()
    return BundleError(f"{bundle.folder}: Triton cannot load it: {message}")
