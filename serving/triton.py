"""A Triton server behind the gateway, over gRPC: the same repository, the same answers.

Each request names the version that it wants and carries its deadline; a cancelled one is cancelled
at the server too. Models are trusted by what the server says of them, not by what was asked for.
"""

import asyncio
import time
from collections.abc import Awaitable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

import anyio.lowlevel
import anyio.to_thread
import numpy as np
from google.protobuf import json_format
from numpy.typing import NDArray
from tritonclient.grpc import InferInput, InferRequestedOutput, aio, model_config_pb2
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from serving.errors import BackendError, BackendUnavailableError, DeadlineError
from serving.jobs import Ask
from serving.repository import Bundle
from serving.runtime import Backend, Tensor
from serving.settings import Settings
from serving.tracing import carried
from serving.triton_failures import failure, refusal, unavailable
from serving.triton_models import difference, require_same_tensors
from tilesight.errors import TilesightError
from tilesight.repository import Repository
from tilesight.triton_config import parse_config

AnswerT = TypeVar("AnswerT")

_KEY_HEADER = "triton-grpc-protocol-admin-key"
# Loading includes the warm-up; the other questions are answered from memory.
_LOAD_S = 300.0
_ASK_S = 5.0
_GRACE_S = 1.0
_CHANNEL = [
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    # By itself gRPC waits up to two minutes before it tries a server again that was away.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
    # The shortest interval that a server accepts. With it the kernel also gives up on a machine
    # that has vanished, after the time-out.
    ("grpc.keepalive_time_ms", 310_000),
    ("grpc.keepalive_timeout_ms", 10_000),
]


class TritonRuntime:
    """The models of a Triton server; under control the gateway says which versions it loads."""

    def __init__(self, settings: Settings) -> None:
        """A runtime that has not spoken to its server yet."""
        self._url = settings.triton_url
        self._control = settings.triton_control
        key = settings.triton_key
        self._headers = {_KEY_HEADER: key.get_secret_value()} if key else {}
        self._repository = Repository(settings.model_repository)
        # A channel belongs to the event loop in which it is made.
        self._channel: aio.InferenceServerClient | None = None
        self._held: dict[str, dict[int, Bundle[Any]]] = {}
        self._backends: dict[tuple[str, int], Backend] = {}

    async def load(self, bundle: Bundle[Any]) -> None:
        """Has the server load the version, and holds what it says of it against the manifest."""
        try:
            problem = await self._problem(bundle)
            if problem and self._control:
                await self._ask_to_load(bundle)
                problem = await self._problem(bundle)
            if problem:
                raise problem
            self._backends[bundle.key] = await self._backend(bundle)
        except InferenceServerException as error:
            raise refusal(bundle, error) from error
        self._held.setdefault(bundle.name, {})[bundle.version] = bundle

    async def unload(self, bundle: Bundle[Any]) -> None:
        """Has the server drop the version, where that is ours to say."""
        held = self._held.get(bundle.name, {})
        held.pop(bundle.version, None)
        self._backends.pop(bundle.key, None)
        if not self._control:
            return
        try:
            if held:
                await self._load_versions(bundle.name, held)
            else:
                await _asked(self._client.unload_model(bundle.name, **self._call(_LOAD_S)))
        except InferenceServerException as error:
            raise refusal(bundle, error) from error

    def station(self, bundle: Bundle[Any], lane: str) -> None:
        """None: the server has queues and batches of its own."""

    async def infer(
        self, bundle: Bundle[Any], inputs: Mapping[str, Tensor], outputs: Sequence[str], ask: Ask
    ) -> dict[str, NDArray[Any]]:
        """The named outputs for one batch, which the server may run together with others."""
        started = time.monotonic()
        left = ask.deadline_s - started
        if left <= 0:
            raise DeadlineError("no time was left to ask Triton")
        try:
            result = await _asked(
                self._client.infer(
                    bundle.name,
                    [_input(name, values) for name, values in inputs.items()],
                    model_version=str(bundle.version),
                    outputs=[InferRequestedOutput(name) for name in outputs],
                    # In its queue the server itself drops what is late.
                    timeout=max(1, int(left * 1e6)),
                    # Later than the deadline of the request, which cancels at the server too.
                    **self._call(left + _GRACE_S),
                )
            )
        except InferenceServerException as error:
            raise failure(error) from error
        found = {name: result.as_numpy(name) for name in outputs}
        if missing := [name for name, values in found.items() if values is None]:
            raise BackendError(f"{bundle.name}: Triton's answer lacks {', '.join(missing)}")
        # Where its time went inside the server is not told with the answer.
        ask.timing.infer += time.monotonic() - started
        return found

    async def holds(self, bundle: Bundle[Any]) -> bool:
        """Whether the server says that the version is ready."""
        try:
            return await _asked(
                self._client.is_model_ready(bundle.name, str(bundle.version), **self._call(_ASK_S))
            )
        except InferenceServerException as error:
            raise unavailable() from error

    def describe(self, bundle: Bundle[Any]) -> Backend:
        """What the server said of itself when the version was loaded."""
        return self._backends[bundle.key]

    async def close(self) -> None:
        """Leaves the server, and its models as they are."""
        if self._channel:
            await self._channel.close()
            self._channel = None

    @property
    def _client(self) -> aio.InferenceServerClient:
        if self._channel is None:
            self._channel = aio.InferenceServerClient(self._url, channel_args=_CHANNEL)
        return self._channel

    def _call(self, seconds: float) -> dict[str, Any]:
        """What goes with every call: the key, and how long it may take."""
        return {"headers": self._headers | carried(), "client_timeout": seconds}

    async def _problem(self, bundle: Bundle[Any]) -> TilesightError | None:
        """Why the server does not serve this version as its manifest says; None where it does."""
        if not await self.holds(bundle):
            return BackendUnavailableError(
                f"Triton has not loaded version {bundle.version} of {bundle.name}"
            )
        return difference(bundle, await self._config(bundle))

    async def _config(self, bundle: Bundle[Any]) -> model_config_pb2.ModelConfig:
        answer = await _asked(
            self._client.get_model_config(bundle.name, str(bundle.version), **self._call(_ASK_S))
        )
        return answer.config

    async def _backend(self, bundle: Bundle[Any]) -> Backend:
        server = await _asked(self._client.get_server_metadata(**self._call(_ASK_S)))
        max_batch = (await self._config(bundle)).max_batch_size
        details: dict[str, str | int] = {
            "runtime": "triton",
            "triton": server.version,
            "max_batch_size": max_batch,
        }
        return Backend("triton", details, max_batch)

    async def _ask_to_load(self, bundle: Bundle[Any]) -> None:
        """Has the server load the version beside those that still answer requests."""
        others = dict(self._held.get(bundle.name, {}))
        others.pop(bundle.version, None)
        for other in others.values():
            require_same_tensors(bundle, other)
        if not others:
            # First as the server's own folder says it: so a folder that is not ours is found.
            await _asked(self._client.load_model(bundle.name, **self._call(_LOAD_S)))
            if await self.holds(bundle):
                return
        await self._load_versions(bundle.name, {*others, bundle.version})

    async def _load_versions(self, name: str, versions: Iterable[int]) -> None:
        text = await anyio.to_thread.run_sync(self._repository.config_text, name)
        config = parse_config(text)
        config.version_policy.specific.versions[:] = sorted(versions)
        override = json_format.MessageToJson(config, preserving_proto_field_name=True)
        await _asked(self._client.load_model(name, config=override, **self._call(_LOAD_S)))


async def _asked(answer: Awaitable[AnswerT]) -> AnswerT:
    """The server's answer.

    gRPC raises a cancellation of its own in the place of the one that it was given, and the cancel
    scope around it would not know it again.
    """
    try:
        return await answer
    except asyncio.CancelledError:
        await anyio.lowlevel.checkpoint_if_cancelled()
        raise


def _input(name: str, values: Tensor) -> InferInput:
    tensor = InferInput(name, list(values.shape), np_to_triton_dtype(values.dtype))
    return tensor.set_data_from_numpy(np.ascontiguousarray(values))
