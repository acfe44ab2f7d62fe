"""All that an operator can set, read once from the environment at the start."""

import os
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, SecretStr, ValidationError, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

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
    max_in_flight: int = Field(
        default=64, gt=0, description="requests with tiles held at once; more are answered 503"
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
    concurrency: int = Field(default=1, gt=0, description="runs of models at the same time")
    threads: int | None = Field(
        default=None,
        gt=0,
        description="threads of one run; absent: the usable cores are shared out",
    )
    device: str = Field(
        default="auto",
        pattern="^(auto|cpu|cuda)$",
        description="auto takes a GPU where one works; cuda refuses to start without",
    )

    runtime: Literal["embedded", "triton"] = Field(
        default="embedded", description="ONNX Runtime in this process, or a Triton server"
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
