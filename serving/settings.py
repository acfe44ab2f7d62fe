"""All that an operator can set, read once from the environment at the start."""

import os
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, SecretStr, ValidationError, ValidationInfo, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from serving.origins import origins
from tilesight.errors import ConfigError
from tilesight.headers import PILLOW_MAX_PIXELS
from tilesight.imaging import ImageLimits

PREFIX = "TILESIGHT_"
# Read by the test suite and by `tilesight triton`, not by the gateway: no misspelt settings.
_OTHERS = frozenset({"TILESIGHT_DATA", "TILESIGHT_TRITON_HOME"})
_MIB = 1 << 20


class Settings(BaseSettings):
    """What the gateway serves, where, and how much of it; each field is TILESIGHT_<NAME>."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, extra="forbid", frozen=True)

    host: str = Field(default="127.0.0.1", description="address to listen on")
    port: int = Field(default=8000, ge=0, le=65535, description="port to listen on; 0 picks one")
    model_repository: Path = Field(
        default=Path("model_repository"), description="folder of the model bundles"
    )
    labels_model: str = Field(default="signa", description="model behind /labels")
    caption_model: str = Field(default="jtts", description="model behind /caption")
    vqa_model: str = Field(
        default="spatialnet_vit_head", description="question head behind /vqa; it names its encoder"
    )
    max_body_bytes: int = Field(default=32 * _MIB, gt=0, description="largest request body")
    max_pixels: int = Field(
        default=64_000_000, gt=0, le=PILLOW_MAX_PIXELS, description="most pixels of one tile"
    )
    max_images: int = Field(default=16, gt=0, description="most tiles of one request")
    max_questions: int = Field(default=32, gt=0, description="most questions of one request")
    body_timeout_s: float = Field(
        default=60.0, gt=0, description="seconds a request body may take to arrive"
    )
    max_queued_images: int = Field(
        default=128, gt=0, description="tiles held at once in each lane; more are answered 503"
    )
    max_queue_s: float = Field(
        default=10.0, gt=0, description="seconds a tile may wait to be begun; then it is given up"
    )
    deadline_s: float = Field(
        default=30.0, gt=0, description="seconds from the complete body to the answer"
    )
    follow_s: float = Field(
        default=2.0,
        ge=0,
        description="seconds between looks at the repository for other versions; 0: never",
    )
    max_batch: int = Field(default=16, gt=0, description="most rows of one run of a model")
    max_batch_delay_s: float = Field(
        default=0.01,
        ge=0,
        description="seconds a decoded tile waits for others that are still being decoded",
    )
    sessions: int | None = Field(
        default=None, gt=0, description="runs of one model at the same time; absent: found"
    )
    threads: int | None = Field(default=None, gt=0, description="threads of one run; absent: found")
    autotune_s: float = Field(
        default=6.0,
        ge=0,
        description="seconds to find sessions x threads x batch on a new machine; 0: not at all",
    )
    cache_dir: Path | None = Field(
        default=None, description="where what was found is kept; absent: ~/.cache/tilesight"
    )
    device: str = Field(
        default="auto",
        pattern="^(auto|cpu|cuda)$",
        description="auto takes a GPU where one works; cuda refuses to start without",
    )

    runtime: Literal["embedded", "openvino", "triton"] = Field(
        default="embedded",
        description="ONNX Runtime in this process, with OpenVINO beside it, or a Triton server",
    )
    triton_url: str = Field(
        default="127.0.0.1:8001",
        pattern=r"^[^\s/]+:[0-9]{1,5}$",
        description="host and port of Triton's gRPC",
    )
    triton_control: bool = Field(
        default=True,
        description="whether the gateway loads and unloads Triton's models; else Triton has them",
    )
    triton_key: SecretStr | None = Field(
        default=None, description="value of Triton's restricted key admin-key"
    )

    api_keys_file: Path | None = Field(
        default=None, description="file of API keys, made by `tilesight keys`; without keys: open"
    )
    api_keys: SecretStr | None = Field(
        default=None, description="the content of such a file, for keys beside it or without one"
    )
    client_rate: float | None = Field(
        default=None,
        gt=0,
        allow_inf_nan=False,
        description="requests with tiles that one client may send a second; absent: any",
    )
    client_burst: int | None = Field(
        default=None,
        gt=0,
        description="requests that a client may send at once; absent: a second's worth",
    )
    cors_origins: Annotated[tuple[str, ...], NoDecode] = Field(
        default=(), description="origins whose pages may ask, with commas between; * for any"
    )
    trusted_proxies: Annotated[tuple[IPv4Network | IPv6Network, ...], NoDecode] = Field(
        default=(), description="addresses and networks whose X-Forwarded-For is believed"
    )

    @field_validator("client_burst")
    @classmethod
    def _of_a_rate(cls, value: int | None, info: ValidationInfo) -> int | None:
        if value is not None and info.data.get("client_rate") is None:
            raise ValueError(f"means nothing without {PREFIX}CLIENT_RATE")
        return value

    @field_validator("cors_origins", mode="before")
    @classmethod
    def _origins(cls, value: object) -> object:
        return origins(value) if isinstance(value, str) else value

    @field_validator("trusted_proxies", mode="before")
    @classmethod
    def _networks(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        return tuple(ip_network(part) for one in value.split(",") if (part := one.strip()))

    workers: int = Field(
        default=1, gt=0, le=64, description="processes that share the port, each with all models"
    )
    drain_wait_s: float = Field(
        default=0.0,
        ge=0,
        allow_inf_nan=False,
        description="seconds of service after SIGTERM in which /readyz already answers 503",
    )
    drain_s: float = Field(
        default=30.0,
        ge=0,
        allow_inf_nan=False,
        description="seconds after that in which begun requests are finished, others answered 503",
    )
    log_requests: Literal["all", "errors", "none"] = Field(
        default="all", description="which requests get a line in the log; errors: 4xx and 5xx"
    )
    otlp_endpoint: str | None = Field(
        default=None,
        pattern=r"^https?://\S+$",
        description="collector of OpenTelemetry traces, e.g. http://collector:4318; absent: none",
    )
    trace_ratio: float = Field(
        default=1.0, ge=0, le=1, description="share of the requests that are traced"
    )

    max_header_bytes: int = Field(
        default=32 * 1024, ge=1024, le=_MIB, description="largest header of a request"
    )
    header_timeout_s: float = Field(
        default=10.0, gt=0, le=3600, description="seconds a request's header may take to arrive"
    )
    max_connections: int = Field(
        default=2048, gt=0, description="connections open at once; more are answered 503"
    )
    spool_bytes: int = Field(
        default=_MIB, gt=0, description="of one body held in memory; the rest waits on the disk"
    )
    max_deadline_s: float = Field(
        default=300.0,
        gt=0,
        allow_inf_nan=False,
        validate_default=True,
        description="the most that Tilesight-Deadline may ask",
    )

    @field_validator("max_deadline_s")
    @classmethod
    def _not_below_the_default(cls, value: float, info: ValidationInfo) -> float:
        if value < info.data.get("deadline_s", 0.0):
            raise ValueError(f"is below {PREFIX}DEADLINE_S, {info.data['deadline_s']:g}")
        return value

    @field_validator("host")
    @classmethod
    def _a_host(cls, value: str) -> str:
        if not value.strip() or any(c in value for c in "/ "):
            raise ValueError(f"{value!r} is no host name or address")
        return value

    @classmethod
    def from_environment(cls, **options: str | int | Path | None) -> Self:
        """The settings of the environment, `options` before them unless they are None.

        Raises:
            ConfigError: naming each variable that is unknown or holds an impossible value.
        """
        given = {name.upper() for name in os.environ if name.upper().startswith(PREFIX)}
        known = {PREFIX + field.upper() for field in cls.model_fields}
        if unknown := sorted(given - known - _OTHERS):
            settings = ", ".join(sorted(known))
            raise ConfigError(f"{', '.join(unknown)}: no such setting; there are {settings}")
        chosen: dict[str, Any] = {name: one for name, one in options.items() if one is not None}
        try:
            return cls(**chosen)
        except ValidationError as error:
            wrong = "; ".join(
                f"{PREFIX}{'.'.join(str(part) for part in problem['loc']).upper()}: "
                f"{problem['msg']}, not {problem['input']!r}"
                for problem in error.errors()
            )
            raise ConfigError(wrong) from None

    @property
    def image_limits(self) -> ImageLimits:
        """What the pixel pipeline may spend on one tile."""
        return ImageLimits(max_bytes=self.max_body_bytes, max_pixels=self.max_pixels)

    @property
    def url(self) -> str:
        """The address to open in a browser."""
        host = self.host
        try:
            address = ip_address(host)
        except ValueError:
            pass
        else:
            if address.is_unspecified:
                host = "127.0.0.1" if address.version == 4 else "::1"
            if ip_address(host).version == 6:
                host = f"[{host}]"
        return f"http://{host}:{self.port}"
