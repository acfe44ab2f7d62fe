"""A training run's configuration: typed, frozen, and strict about its keys."""

from pathlib import Path
from typing import Annotated, Literal, Self

import yaml
from pydantic import Field, TypeAdapter, ValidationError, model_validator

from tilesight.errors import ConfigError
from tilesight.files import write_text
from tilesight.manifest import Strict
from training.models.jtts import JttsConfig
from training.models.signa import SignaConfig
from training.models.spatialnet_vit import SpatialNetVitConfig

ModelName = Literal["signa", "jtts", "spatialnet-vit"]
MultiLabelName = Literal["ucm", "ucm_aitlas", "aid", "dfc15", "ucm+aid"]
MODEL_NAMES: tuple[ModelName, ...] = ("signa", "jtts", "spatialnet-vit")


class FitConfig(Strict):
    """How the weights are fitted: AdamW with one cosine cycle."""

    epochs: int = Field(gt=0)
    batch_size: int = Field(gt=0, description="tiles a step")
    learning_rate: float = Field(gt=0, description="highest rate of the new modules")
    backbone_learning_rate: float = Field(gt=0, description="highest rate of the pretrained CNN")
    weight_decay: float = Field(ge=0)
    warmup: float = Field(default=0.15, ge=0, lt=1, description="share of the steps")
    gradient_clip: float = Field(default=1.0, gt=0, description="largest gradient norm")
    averaging: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="decay of the running mean of the weights, which is what is kept; 0: none",
    )
    precision: Literal["32-true", "bf16-mixed"] = "32-true"
    checkpoint_precision: Literal["float32", "float16"] = Field(
        default="float16",
        description="what the weights are rounded to before the test split is measured",
    )


class Run(Strict):
    """What all runs have."""

    seed: int = Field(default=42, ge=0, lt=2**32, description="what numpy takes")
    image_size: int = Field(default=224, ge=32, multiple_of=32)
    fit: FitConfig


class Augmentation(Strict):
    """How the training tiles of SIGNA are changed; all are flipped and transposed at random.

    The paper flips and draws the brightness from 0.6 to 1.4: `brightness: 0.4`.
    """

    brightness: float = Field(default=0.2, ge=0, lt=1, description="farthest factor from 1")
    coarsened: float = Field(
        default=0.0, ge=0, le=1, description="share of the tiles that lose resolution"
    )
    coarsest: float = Field(
        default=0.25, gt=0, le=1, description="least share of the side that is left of them"
    )


class SignaRun(Run):
    """A run that trains SIGNA or one of its rivals."""

    model: Literal["signa"]
    dataset: MultiLabelName = "ucm"
    architecture: SignaConfig = SignaConfig()
    augmentation: Augmentation = Augmentation()


class JttsRun(Run):
    """A run that trains JTTS."""

    model: Literal["jtts"]
    dataset: Literal["ucm"] = "ucm"
    architecture: JttsConfig = JttsConfig()
    sentences_per_tile: int = Field(default=2, ge=1, le=5, description="drawn anew each epoch")
    min_word_count: int = Field(default=6, ge=1, description="rarer words become unknown")


class TaskWeights(Strict):
    """The weights of the tasks' losses (equation 6); the paper has 1 for each."""

    answer: float = Field(default=1.0, ge=0)
    land_use: float = Field(default=1.0, ge=0)
    caption: float = Field(default=1.0, ge=0)
    count: float = Field(default=1.0, ge=0)


class SpatialNetVitRun(Run):
    """A run that trains SpatialNet-ViT."""

    model: Literal["spatialnet-vit"]
    dataset: Literal["ucm"] = "ucm"
    architecture: SpatialNetVitConfig = SpatialNetVitConfig()
    questions_per_tile: int = Field(default=6, ge=1, description="drawn anew each epoch")
    min_answer_count: int = Field(default=3, ge=1, description="rarer answers are not offered")
    min_word_count: int = Field(default=1, ge=1)
    task_weights: TaskWeights = TaskWeights()

    @model_validator(mode="after")
    def _one_image_size(self) -> Self:
        if self.image_size != self.architecture.image_size:
            raise ValueError(
                f"architecture.image_size: {self.architecture.image_size}, "
                f"image_size is {self.image_size}; they have to be the same"
            )
        return self


RunConfig = SignaRun | JttsRun | SpatialNetVitRun
_ADAPTER: TypeAdapter[RunConfig] = TypeAdapter(
    Annotated[SignaRun | JttsRun | SpatialNetVitRun, Field(discriminator="model")]
)


def default_config_path(model: ModelName) -> Path:
    """The committed configuration of the model."""
    return Path(__file__).parent / "configs" / f"{model}.yaml"


def read_config(path: Path) -> RunConfig:
    """The configuration in a YAML file.

    Raises:
        ConfigError: no such file, not YAML, an unknown key, a wrong type or value; each is named.
    """
    if not path.is_file():
        raise ConfigError(f"{path}: no such configuration file")
    try:
        return _ADAPTER.validate_python(yaml.safe_load(path.read_text(encoding="utf-8")))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not YAML: {error}") from None
    except ValidationError as error:
        problems = "; ".join(
            f"{'.'.join(str(part) for part in problem['loc'])}: {problem['msg']}"
            for problem in error.errors()
        )
        raise ConfigError(f"{path}: {problems}") from None


def write_config(config: RunConfig, path: Path) -> None:
    """Writes the resolved configuration, every default spelled out."""
    write_text(path, yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False))
