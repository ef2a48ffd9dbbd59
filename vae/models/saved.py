"""A model on disk: `weights.safetensors` and a readable `config.json`. Loading runs no code from either.

Both are checked before a model is built: a `config.json` from elsewhere may ask for any amount of memory.
"""

import itertools
import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_serializer, model_validator
from safetensors import SafetensorError
from safetensors.torch import load_file
from safetensors.torch import save as to_bytes
from torch import Tensor

from vae.compute.devices import Compute
from vae.config.errors import InputError
from vae.config.preprocessing import Preprocessing
from vae.config.sections import LARGEST_IMAGE, Model
from vae.models.files import CONFIG_FILE, PRIOR_FILE, WEIGHTS_FILE, missing, weights_hash
from vae.models.hierarchy import HIDDEN
from vae.models.likelihood import Likelihood
from vae.models.vae import VAE, to_device
from vae.priors import flow
from vae.priors.flow import Flow
from vae.priors.learned import fewest_weights
from vae.priors.mixture import Mixture
from vae.priors.standard import STANDARD, Prior

# A remedy changes these sections, but for places and for what decides about remedies.
_REMEDIED = ("model.", "objective.", "kl.", "train.")
_FIXED = ("train.device", "train.initial_weights", "train.on_collapse", "train.remedy_attempts")

_Side = Annotated[int, Field(ge=1, le=LARGEST_IMAGE)]


class _Checked(BaseModel):
    model_config = ConfigDict(strict=True, allow_inf_nan=False, frozen=True)


class Attempted(_Checked):
    """One attempt of a training with remedies: its changes of parameters, its verdict, and whether it was kept."""

    changes: dict[str, Any]
    verdict: str
    reasons: list[str]
    kept: bool


class ValidationScores(_Checked):
    """Of the validation split; empty in models saved before scores were kept."""

    images: int | None = None
    score_percentiles: Annotated[list[float], Field(min_length=101, max_length=101)] | None = None

    @model_validator(mode="after")
    def _percentiles_rise(self) -> "ValidationScores":
        if any(low > high for low, high in itertools.pairwise(self.score_percentiles or [])):
            raise ValueError("score_percentiles must not decrease")
        return self


class PriorFit(_Checked):
    """The prior fitted to the latents after training.

    Attributes:
        name: what samples are drawn from unless N(0, I) is asked for; that of the model's own learned prior where no
            fitted one was better.
        log_likelihood: E_q ln r(z) of held-out training images in nats, of each candidate r.
    """

    name: str = STANDARD
    log_likelihood: dict[str, float] = {}


class ModelConfig(_Checked):
    """`config.json`: all that is needed, besides the weights, to judge a model and to give it new images.

    Attributes:
        likelihood: frozen when training ended.
        preprocessing: what turned files into its images.
        precision: fp32 or bf16, as it was trained and measured.
        kept_epoch: which epoch this is. stopped: why training ended early, or None.
        latent_mean, latent_std: of each channel of a map of latents, z ~ q(z|x) of the saved encoder, over the training
            split and all places. Standardised ones have 0 and 1; 1 / latent_std is what others call the scaling
            factor. None of a vector.
        train: measured on the training split at the end: images, elbo, reconstruction, kl, mse, mse_sampled,
            mean_image_elbo, mean_image_mse.
        changes: of the parameters, by name, where a remedy made the model; none otherwise.
        remedies: every attempt, where there was more than one.
    """

    format: Literal[1]
    model: Model
    image_shape: tuple[_Side, _Side, _Side]
    likelihood: Likelihood
    preprocessing: Preprocessing
    precision: Literal["fp32", "bf16"]
    kept_epoch: Annotated[int, Field(ge=0)]
    stopped: str | None
    train: dict[str, int | float | None]
    latent_mean: list[float] | None = None
    latent_std: list[float] | None = None
    prior: PriorFit = PriorFit()
    valid: ValidationScores = ValidationScores()
    changes: dict[str, Any] = {}
    remedies: list[Attempted] = []

    @field_serializer("likelihood")
    def _as_older_models_have_it(self, likelihood: Likelihood) -> dict[str, Any]:
        values = asdict(likelihood)
        return values if likelihood.components is not None else {name: values[name] for name in ("kind", "sigma")}

    @model_validator(mode="after")
    def _parts_fit(self) -> "ModelConfig":
        """Refuses what would otherwise give wrong numbers instead of an error."""
        made = self.preprocessing
        if (made.channels, made.height, made.width) != self.image_shape:
            raise ValueError(f"preprocessing does not give images of image_shape = {list(self.image_shape)}")
        self.model.check_map(made.height, made.width)
        self.model.check_levels(made.height, made.width)
        if not self.likelihood.fits(made.channels):
            raise ValueError(f"unsupported likelihood: {self.likelihood}")
        if not all(name.startswith(_REMEDIED) and name not in _FIXED for name in self.changes):
            raise ValueError(f"changes = {self.changes!r}: a remedy cannot change these")
        return self


@dataclass(frozen=True)
class Saved:
    """A model, read from its folder, in evaluation mode.

    Attributes:
        prior: what samples are drawn from: fitted after training, or `own_prior` where that fits the latents as well.
        sha256: of the weights file.
    """

    model: VAE
    config: ModelConfig
    prior: Prior
    sha256: str

    @property
    def likelihood(self) -> Likelihood:
        return self.config.likelihood

    @property
    def own_prior(self) -> Prior:
        """That of the ELBO: N(0, I), or the one that was learned with the model."""
        return self.model.own_prior()

    @property
    def pixels(self) -> int:
        return math.prod(self.config.image_shape)

    def compute(self, device: torch.device | None = None) -> Compute:
        """On the CPU, or the given device, in the precision of the training."""
        return Compute(device or torch.device("cpu"), self.config.precision)


def save(folder: Path, model: VAE, config: ModelConfig, prior: Prior | None = None) -> str:
    """Writes the model into a folder; returns the SHA-256 of its weights.

    Raises:
        OSError: the disk is full or may not be written to.
    """
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    text = json.dumps(config.model_dump(mode="json"), indent=2, allow_nan=False)
    for file in (WEIGHTS_FILE, PRIOR_FILE, CONFIG_FILE):
        (folder / file).unlink(missing_ok=True)  # of the previous model, or a link to it in DVC's cache
    (folder / WEIGHTS_FILE).write_bytes(to_bytes(weights))
    if isinstance(prior, Mixture | Flow):
        (folder / PRIOR_FILE).write_bytes(to_bytes(prior.tensors()))
    (folder / CONFIG_FILE).write_text(text + "\n", encoding="utf-8")
    return weights_hash(folder)


def load(folder: Path, device: torch.device | None = None) -> Saved:
    """Raises: InputError: a file is missing or damaged, or the weights do not fit the configuration."""
    config = read_config(folder)
    weights = read_weights(folder / WEIGHTS_FILE)
    try:
        _check_size(config, weights)
        model = VAE(
            config.image_shape,
            learned_sigma="log_sigma" in weights,
            likelihood=config.likelihood,
            **config.model.model_dump(),
        )
        model.load_state_dict(weights)
        expected = model.state_dict()
        if wrong := [n for n, t in weights.items() if t.dtype != expected[n].dtype]:
            raise ValueError(f"{wrong[0]} is of {weights[wrong[0]].dtype}")
        fitted = _read_prior(folder / PRIOR_FILE, model.latent_dim)
        if isinstance(fitted, Mixture) and config.prior.name == STANDARD:  # of an older model
            name = f"mixture of {len(fitted.weights)} Gaussians"
            config = config.model_copy(update={"prior": PriorFit(name=name)})
    except (KeyError, TypeError, ValueError, IndexError, RuntimeError) as error:
        raise _misfit(folder, str(error)) from None
    model = to_device(model, device or torch.device("cpu")).eval()
    return Saved(model, config, fitted or model.own_prior(), weights_hash(folder))


def read_config(folder: Path) -> ModelConfig:
    """Raises: InputError: it is missing, damaged, or has values that no model has."""
    try:
        return ModelConfig.model_validate_json((folder / CONFIG_FILE).read_bytes())
    except FileNotFoundError:
        raise missing(folder, CONFIG_FILE) from None
    except ValidationError as error:
        first = error.errors()[0]
        if first["type"] == "json_invalid":
            raise InputError(f"{folder / CONFIG_FILE} is damaged: {first['msg']}") from None
        place = ".".join(str(part) for part in first["loc"])
        raise _misfit(folder, f"{place}: {first['msg']}" if place else first["msg"]) from None


def read_weights(path: Path) -> dict[str, Tensor]:
    """Reads a safetensors file; anything else, a pickle above all, is refused."""
    try:
        if path.exists() and not path.is_file():  # opening a pipe would wait forever
            raise InputError(f"{path} is not a safetensors file but a folder, a pipe or a device")
        return load_file(path)
    except FileNotFoundError:
        raise InputError(f"{path} does not exist") from None
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path} is not a safetensors file: {error}") from None


def _misfit(folder: Path, reason: str) -> InputError:
    last = reason.strip().splitlines()[-1].strip()
    return InputError(f"{folder}: weights and {CONFIG_FILE} do not fit together: {last}")


def _check_size(config: ModelConfig, weights: dict[str, Tensor]) -> None:
    """Keeps the network within a few times the size of its weights file.

    Raises:
        ValueError: the file holds fewer weights than the smallest such network.
    """
    channels, height, width = config.image_shape
    widths = config.model.widths
    first, last = channels * height * width, widths[-1]
    if "mlp" not in config.model.architecture:
        first, last = channels, last * (height >> len(widths)) * (width >> len(widths))
    if config.model.latent_shape is not None:
        last = 9 * widths[-1] if config.model.architecture == "residual" else 2 * config.model.units
    fewest = 2 * last * (config.model.top_latents if config.model.latent_shape is None else config.model.units)
    fewest += _fewest_of_lower(config.model, last)
    fewest += sum(before * after for before, after in itertools.pairwise((first, *widths)))
    model = config.model
    if model.architecture in ("residual", "autoencoder_kl"):  # blocks of two 3×3 convolutions, in encoder and decoder
        fewest += 18 * (2 * model.blocks - 1) * sum(width**2 for width in widths)
    outputs = config.likelihood.outputs(channels) * (height * width if "mlp" in model.architecture else 1)
    fewest += widths[0] * outputs
    fewest += fewest_weights(model.prior, model.prior_components, model.latent_dim, channels * height * width)
    if fewest > sum(tensor.numel() for tensor in weights.values()):
        raise ValueError(f"{WEIGHTS_FILE} holds fewer weights than such a model needs (at least {fewest:,})")


def _fewest_of_lower(model: Model, features: int) -> int:
    """Weights of the lower of two levels: those of its prior and posterior, hidden layers among them, and of what
    joins it with the images.
    """
    if isinstance(model.lower_latents, tuple):
        return 2 * 9 * 2 * model.lower_latents[2] * min(model.widths)
    if model.lower_latents is None:
        return 0
    is_mlp = "mlp" in model.architecture
    hidden, found = (model.widths[-1], 0) if is_mlp else (HIDDEN, features)
    return hidden * (4 * model.lower_latents + 2 * hidden + found)


def _read_prior(path: Path, latents: int) -> Prior | None:
    """Raises: ValueError, RuntimeError: it is not a prior over so many latents."""
    if not path.exists():
        return None
    tensors = read_weights(path)
    if "weights" not in tensors:
        return flow.read(tensors, latents)
    if tensors.keys() == {"weights", "means", "scales"}:  # of an older model: over z itself
        like = tensors["means"]
        tensors |= {"mean": like.new_zeros(latents), "basis": torch.eye(latents, dtype=like.dtype)}
    prior = Mixture(**tensors)
    if not prior.is_valid(latents):
        raise ValueError(f"{path.name} is not a mixture over {latents} latents")
    return prior
