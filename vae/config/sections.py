"""The sections of `params.yaml`: their parameters, defaults, and what is allowed.

Every number has its unit in `params.yaml` and in docs/parameters.md.
"""

import math
import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_serializer, model_validator

from vae.config.constants import EFFICIENTNET

SMALLEST_IMAGE, LARGEST_IMAGE = 8, 512
MOST_LATENTS, MOST_OF_MAPS = 4096, 2**18  # of vectors, and of maps, whose network does not grow with their size
MOST_OF_FITTED_MAPS = 1024  # latents of a map to which a prior is fitted

# What a system takes for a path: neither a NUL nor more than PATH_MAX bytes.
PathText = Annotated[str, Field(min_length=1, max_length=4096, pattern=r"^[^\x00]*$")]


def _pair(value: Any) -> Any:
    """`16` and `[16, 16]` mean the same: (height, width)."""
    pair = [value, value] if isinstance(value, int) else list(value) if isinstance(value, list | tuple) else []
    if len(pair) != 2 or not all(type(side) is int and SMALLEST_IMAGE <= side <= LARGEST_IMAGE for side in pair):
        raise ValueError(
            f"invalid image size {value!r}; give one whole number of pixels for a square, or [height, width], "
            f"each {SMALLEST_IMAGE} to {LARGEST_IMAGE}"
        )
    return tuple(pair)


def _map(value: Any) -> Any:
    """[height, width, channels], or None."""
    if value is None:
        return None
    sides = list(value) if isinstance(value, list | tuple) else []
    if len(sides) != 3 or not all(type(n) is int and n >= 1 for n in sides) or math.prod(sides) > MOST_OF_MAPS:
        raise ValueError(
            f"invalid shape of latents {value!r}; give [height, width, channels], three whole numbers whose product is "
            f"at most {MOST_OF_MAPS:,}, such as [32, 32, 4], or null"
        )
    return tuple(sides)


def _lower(value: Any) -> Any:
    """A number of latents, or a map of them, or None."""
    if type(value) is int and value < 1:
        raise ValueError(f"invalid lower_latents {value!r}; give 1 or more, [height, width, channels], or null")
    return value if type(value) is int else _map(value)


def device_name(text: str) -> str:
    """Raises: ValueError: it names no device that this project computes on."""
    if re.fullmatch(r"auto|cpu|cuda(:[0-9]{1,3})?", text):
        return text
    apple = ": Apple's GPUs lack float64, in which sums are kept" if text == "mps" else ""
    raise ValueError(f"device {text[:200]!r} is not supported{apple}; use auto, cpu, cuda or cuda:1")


def _black_and_white(value: Any) -> Any:
    pair = list(value) if isinstance(value, list | tuple) else []
    if len(pair) != 2 or not all(type(n) in (int, float) for n in pair) or not -1e30 < pair[0] < pair[1] < 1e30:
        raise ValueError(f"invalid range {value!r}; give [black, white], two numbers, the smaller one first")
    return float(pair[0]), float(pair[1])


# The source's values that become black and white.
ValueRange = Annotated[tuple[float, float], BeforeValidator(_black_and_white)]
Alpha = Literal["white", "ignore"]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class Data(Section):
    source: Literal["digits", "folder", "idx", "npy", "huggingface"] = "digits"
    path: PathText = "data/bundled"
    image_size: Annotated[tuple[int, int], BeforeValidator(_pair)] = (16, 16)
    channels: Literal[1, 3] = 1
    value_range: ValueRange | None = None
    alpha: Alpha = "white"
    valid_fraction: float = Field(gt=0, lt=1, default=0.1)
    test_fraction: float = Field(gt=0, lt=1, default=0.1)
    max_bad_fraction: float = Field(ge=0, le=1, default=0.02)
    binarise: Literal["none", "threshold", "static", "dynamic"] = "none"
    augment: Literal["none", "flip", "dihedral"] = "none"
    shift: int = Field(ge=0, le=256, default=0)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W), as the networks see it."""
        return (self.channels, *self.image_size)

    @model_validator(mode="after")
    def _turned_images_keep_their_shape(self) -> "Data":
        height, width = self.image_size
        if self.augment == "dihedral" and height != width:
            raise ValueError(
                f"augment = dihedral turns images by 90°, which needs a square image_size; it is {height}×{width}: "
                "set augment to flip"
            )
        return self

    @model_validator(mode="after")
    def _moved_images_mirror_what_they_have(self) -> "Data":
        if self.shift >= min(self.image_size):
            raise ValueError(
                f"shift = {self.shift} must be smaller than the shorter side of the images, {min(self.image_size)}"
            )
        return self

    @model_validator(mode="after")
    def _something_is_left_to_train_on(self) -> "Data":
        if self.valid_fraction + self.test_fraction >= 1:
            raise ValueError(
                f"valid_fraction {self.valid_fraction} + test_fraction {self.test_fraction} must be below 1"
            )
        return self


class Model(Section):
    architecture: Literal["conv", "residual", "autoencoder_kl", "mlp", "gated_mlp", "autoregressive"] = "conv"
    latent_dim: int = Field(ge=1, le=MOST_OF_MAPS, default=16)
    latent_shape: Annotated[tuple[int, int, int] | None, BeforeValidator(_map)] = None
    lower_latents: Annotated[int | tuple[int, int, int] | None, BeforeValidator(_lower)] = None
    widths: list[Annotated[int, Field(ge=1, le=8192)]] = Field(min_length=1, max_length=8, default=[32, 64])
    batch_norm: bool = True
    blocks: int = Field(ge=1, le=16, default=1)
    attention: bool = False
    mean_batch_norm: Annotated[float, Field(gt=0, le=10)] | None = None
    logvar_max: float = Field(ge=-10, le=10, default=10.0)
    prior: Literal["standard", "mixture", "vamp", "flow"] = "standard"
    prior_components: int = Field(ge=1, le=10_000, default=100)

    @property
    def units(self) -> int:
        """What is counted as active or informative: latents, or the channels of a map of latents."""
        return self.latent_dim if self.latent_shape is None else self.latent_shape[2]

    @property
    def factor(self) -> int:
        """By which a convolutional network divides an image's sides; 1 of one without scales."""
        halvings = {"mlp": 0, "gated_mlp": 0, "autoencoder_kl": len(self.widths) - 1}
        return int(2 ** halvings.get(self.architecture, len(self.widths)))

    @property
    def unit(self) -> str:
        """The word for one of them."""
        return "latent" if self.latent_shape is None else "channel"

    @property
    def is_one_vector(self) -> bool:
        """Whether the latents are neither a map nor of two levels."""
        return self.latent_shape is None and self.lower_latents is None

    @property
    def fits_a_prior(self) -> bool:
        """Whether one is fitted after training: not to two levels, of which q(z|x) is no Gaussian, nor to a large map,
        whose prior is a model of its own.
        """
        small = self.latent_shape is None or self.latent_dim <= MOST_OF_FITTED_MAPS
        return small and self.lower_latents is None

    @property
    def latents_set_by(self) -> str:
        """The parameter that sets their number."""
        return "model.latent_dim" if self.latent_shape is None else "model.latent_shape"

    @property
    def latents_as_set(self) -> str:
        """With its value."""
        return f"{self.latents_set_by} = {self.latent_dim if self.latent_shape is None else list(self.latent_shape)}"

    @model_validator(mode="before")
    @classmethod
    def _latents_of_a_map(cls, value: Any) -> Any:
        """With a `latent_shape`, a `latent_dim` that is left at its default becomes its product."""
        if not isinstance(value, dict) or value.get("latent_shape") is None:
            return value
        shape, default = _map(value["latent_shape"]), cls.model_fields["latent_dim"].default
        return value | {"latent_dim": math.prod(shape)} if value.get("latent_dim", default) == default else value

    @model_validator(mode="after")
    def _number_of_latents(self) -> "Model":
        if self.latent_shape is None and self.latent_dim > MOST_LATENTS:
            raise ValueError(
                f"latent_dim = {self.latent_dim} is more than {MOST_LATENTS:,}; for more, set latent_shape, the shape "
                "of a map of latents"
            )
        if self.latent_shape is not None and self.latent_dim != math.prod(self.latent_shape):
            raise ValueError(
                f"latent_dim = {self.latent_dim}, but latent_shape = {list(self.latent_shape)} has "
                f"{math.prod(self.latent_shape)} latents; leave latent_dim at its default"
            )
        return self

    @property
    def top_latents(self) -> int:
        """Z₂, those of the upper of two levels; Z of one level."""
        lower = self.lower_latents
        return self.latent_dim - (math.prod(lower) if isinstance(lower, tuple) else lower or 0)

    def check_levels(self, height: int, width: int) -> None:
        """Raises: ValueError: `lower_latents` does not fit the rest of the network."""
        if self.lower_latents is None:
            return
        is_map = isinstance(self.lower_latents, tuple)
        lower = f"model.lower_latents = {list(self.lower_latents) if is_map else self.lower_latents}"  # type: ignore[arg-type]
        fits = ("residual",) if is_map else ("conv", "residual", "mlp", "gated_mlp")
        if self.architecture not in fits:
            raise ValueError(f"{lower} needs model.architecture = {' or '.join(fits)}; it is {self.architecture}")
        if self.top_latents < 1:
            raise ValueError(
                f"{lower} leaves none of model.latent_dim = {self.latent_dim} to the upper level: latent_dim counts "
                f"both levels; give more than {self.latent_dim - self.top_latents}"
            )
        scales = [(height >> level, width >> level) for level in range(1, len(self.widths) + 1)]
        if isinstance(self.lower_latents, tuple) and self.lower_latents[:2] not in scales:
            raise ValueError(f"{lower} needs the height and width of a scale: {', '.join(map(str, map(list, scales)))}")
        remedies = {
            "model.latent_shape": self.latent_shape is not None and "null",
            "model.prior": self.prior != "standard" and "standard",
            "model.mean_batch_norm": self.mean_batch_norm is not None and "null",
        }
        for name, remedy in remedies.items():
            if remedy:
                raise ValueError(
                    f"{name} does not go with {lower}: two levels have a prior of their own; set it to {remedy}"
                )

    def check_map(self, height: int, width: int) -> None:
        """Raises: ValueError: `latent_shape` is not what this network makes of images of this size."""
        factor = self.factor
        if self.latent_shape is None and self.architecture == "autoencoder_kl":
            raise ValueError(
                "model.architecture = autoencoder_kl needs model.latent_shape, such as "
                f"{[height // factor, width // factor, 4]}"
            )
        if self.latent_shape is None:
            return
        shape = f"model.latent_shape = {list(self.latent_shape)}"
        if self.architecture not in ("residual", "autoencoder_kl"):
            raise ValueError(
                f"{shape} needs model.architecture = residual or autoencoder_kl; it is {self.architecture}"
            )
        if self.architecture == "autoencoder_kl" and self.latent_shape[:2] == (1, 1):
            raise ValueError(f"{shape}: group norm leaves nothing of an image in one place; give fewer model.widths")
        if height % factor or width % factor:
            raise ValueError(
                f"{shape} with {len(self.widths)} model.widths needs a data.image_size of multiples of {factor}; it is "
                f"{height}×{width}"
            )
        if self.latent_shape[:2] != (height // factor, width // factor):
            fits = [height // factor, width // factor, self.latent_shape[2]]
            raise ValueError(
                f"{shape} does not fit: {len(self.widths)} model.widths divide images of {height}×{width} by {factor}; "
                f"set it to {fits}{self._other_widths(height, width)}"
            )

    def _other_widths(self, height: int, width: int) -> str:
        """Advice where some other number of widths has this `latent_shape`."""
        assert self.latent_shape is not None
        down, right = height // self.latent_shape[0], width // self.latent_shape[1]
        exact = [height, width] == [down * self.latent_shape[0], right * self.latent_shape[1]]
        if not exact or down != right or down & (down - 1):
            return ""
        return f", or give {'fewer' if down < self.factor else 'more'} widths"


LikelihoodKind = Literal["gaussian", "bernoulli", "discretised_gaussian", "discretised_logistic", "logistic_mixture"]


class Objective(Section):
    likelihood: LikelihoodKind = "gaussian"
    mixture_components: int = Field(ge=1, le=100, default=10)
    sigma: Literal["optimal", "learned", "channel", "pixel"] | Annotated[float, Field(gt=0, le=10)] = "optimal"
    reduction: Literal["sum", "mean"] = "sum"
    importance_samples_train: int = Field(ge=1, le=100, default=1)
    align: float = Field(ge=0, le=1e9, default=0.0)
    perceptual: float = Field(ge=0, le=1e9, default=0.0)
    features: PathText = EFFICIENTNET

    @property
    def uses_features(self) -> bool:
        return self.align > 0 or self.perceptual > 0

    @property
    def is_discretised(self) -> bool:
        """Whether pixels are 8-bit levels with a probability each."""
        return self.likelihood not in ("gaussian", "bernoulli")

    @property
    def has_sigma(self) -> bool:
        """Whether `sigma` has a meaning."""
        return self.likelihood not in ("bernoulli", "logistic_mixture")


class Wish(Section):
    """What a KL weight shall lead to; preflight finds the weight."""

    rate: Annotated[float, Field(gt=0)] | None = None  # nats per image
    rmse: Annotated[float, Field(gt=0, le=1)] | None = None  # root mean squared error, in pixels of [0, 1]

    @model_validator(mode="before")
    @classmethod
    def _one_of_them(cls, value: Any) -> Any:
        if isinstance(value, Wish):
            return value
        given = [name for name, wish in value.items() if wish is not None] if isinstance(value, dict) else []
        if len(given) != 1 or given[0] not in cls.model_fields:
            raise ValueError("a wish is either {rate: nats per image} or {rmse: an error in pixels of [0, 1]}")
        return value

    @model_serializer
    def _as_written(self) -> dict[str, float]:
        return {name: value for name, value in self if value is not None}


Purpose = Literal["calibrated", "reconstruct", "represent", "sample"]


class KL(Section):
    schedule: Literal["constant", "linear", "cosine", "sigmoid", "cyclical"] = "linear"
    max_weight: Annotated[float, Field(ge=0, le=1e6)] | Purpose | Wish = 1.0
    annealing_epochs: Annotated[float, Field(ge=0)] | Literal["auto"] = "auto"
    annealing_steps: Annotated[int, Field(ge=1)] | None = None
    cycles: int = Field(ge=1, default=4)
    ratio: float = Field(gt=0, le=1, default=0.5)
    cycle_shape: Literal["linear", "cosine", "sigmoid"] = "linear"
    free_bits: float = Field(ge=0, default=0.0)
    free_bits_total: float = Field(ge=0, default=0.0)
    capacity: Annotated[float, Field(gt=0)] | None = None
    target_kl: Annotated[float, Field(gt=0)] | None = None
    min_weight: float = Field(ge=0, default=0.0)
    proportional_gain: float = Field(ge=0, default=1.0)
    integral_gain: float = Field(ge=0, default=0.05)
    reconstruction_target: Annotated[float, Field(gt=0, le=1)] | None = None

    @property
    def control(self) -> Literal["schedule", "capacity", "pi", "geco"]:
        """What steers the rate: the schedule alone, or the one control whose target is set."""
        if self.capacity is not None:
            return "capacity"
        if self.target_kl is not None:
            return "pi"
        return "schedule" if self.reconstruction_target is None else "geco"

    @property
    def asks_preflight(self) -> bool:
        """Whether `max_weight` is a wish, which preflight turns into a number."""
        return not isinstance(self.max_weight, float)

    @property
    def control_name(self) -> str:
        """The parameter that holds the control's target."""
        names = {"schedule": "max_weight", "capacity": "capacity", "pi": "target_kl", "geco": "reconstruction_target"}
        return names[self.control]

    @property
    def target_rate(self) -> float | None:
        """The rate that a control steers to, in nats per image."""
        return self.target_kl if self.capacity is None else self.capacity

    @model_validator(mode="after")
    def _one_control(self) -> "KL":
        targets = {name: getattr(self, name) for name in ("capacity", "target_kl", "reconstruction_target")}
        given = [f"{name} = {value:g}" for name, value in targets.items() if value is not None]
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)} cannot be combined; leave all but one at null")
        if given and (self.free_bits or self.free_bits_total):
            raise ValueError(f"{given[0]} and free bits cannot be combined; set free_bits and free_bits_total to 0")
        if self.free_bits and self.free_bits_total:
            raise ValueError("free_bits and free_bits_total cannot be combined; set one of them to 0")
        if self.target_kl is None:
            return self
        if isinstance(self.max_weight, str | Wish):
            raise ValueError("target_kl needs a number for max_weight: the bound that the controller may reach")
        if self.min_weight >= self.max_weight:
            raise ValueError(f"min_weight = {self.min_weight:g} must be below max_weight = {self.max_weight:g}")
        return self


class Preflight(Section):
    pilot: Literal["auto"] | bool = "auto"
    latent_dims: bool = False


class Train(Section):
    epochs: int = Field(ge=1, default=20)
    budget: Annotated[float, Field(gt=0)] | None = None
    batch_size: int = Field(ge=1, default=64)
    optimizer: Literal["muon", "adamw"] = "muon"
    learning_rate: Annotated[float, Field(gt=0)] | Literal["auto"] = "auto"
    learning_rate_schedule: Literal["constant", "linear", "cosine"] = "cosine"
    warmup: float = Field(ge=0, lt=1, default=0.1)
    weight_decay: float = Field(ge=0, default=0.5)
    ema: Annotated[float, Field(gt=0, lt=1)] | None = None
    gradient_clip: Annotated[float, Field(gt=0)] | None = 100.0
    aggressive_encoder: bool = False
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    device: Annotated[str, AfterValidator(device_name)] = "auto"
    compile: Literal["auto"] | bool = "auto"
    gradient_checkpointing: bool = False
    deterministic: bool = True
    patience: Annotated[int, Field(ge=1)] | None = None
    select: Literal["best", "last"] = "best"
    initial_weights: PathText | None = None
    on_collapse: Literal["stop", "remedy", "continue"] = "stop"
    remedy_attempts: int = Field(ge=0, default=2)

    def steps_per_epoch(self, images: int) -> int:
        """Full batches only: a last batch of one or two images makes the statistics of batch norm meaningless."""
        return images // self.batch_size


class Monitor(Section):
    active_unit_threshold: float = Field(gt=0, default=0.01)
    informative_unit_nats: float = Field(gt=0, default=0.1)
    on_unhealthy: Literal["fail", "warn"] = "fail"


class Evaluate(Section):
    importance_samples: int = Field(ge=1, le=10_000, default=100)
    register_as: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", max_length=100, default="vae")


class Promote(Section):
    mode: Literal["disabled", "dry_run", "enabled"] = "dry_run"
