"""A model on disk: `weights.safetensors` and a readable `config.json`. Loading runs no code from either.

Both are checked before anything is made of them: a `config.json` from elsewhere may ask for any amount of memory.
"""

import dataclasses
import hashlib
import itertools
import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file
from safetensors.torch import save as to_bytes
from torch import Tensor

from vae.compute.devices import Compute
from vae.config.errors import InputError
from vae.config.parameters import LARGEST_IMAGE, Model
from vae.losses.objective import Likelihood
from vae.models.mixture_prior import Mixture
from vae.models.vae import VAE, to_device

WEIGHTS, CONFIG, PRIOR = "weights.safetensors", "config.json", "prior.safetensors"
FIXED = ("train.device", "train.initial_weights", "train.on_collapse", "train.remedy_attempts")


@dataclass(frozen=True)
class Saved:
    """A model with all that is needed to judge it and to give it new images.

    Attributes:
        likelihood: frozen when training ended.
        preprocessing: what turned files into its images (`vae.data.images.Preprocessing`).
        precision: fp32 or bf16, as it was trained and measured.
        kept_epoch: which epoch this is. stopped: why training ended early, or None.
        train: measured on the training split at the end: images, elbo, reconstruction, kl, mse,
            mse_sampled, mean_image_elbo, mean_image_mse.
        valid: of the validation split: images, and score_percentiles (`vae.inference.scoring`); empty for models that
            were saved before scores were kept.
        sha256: of the weights file.
        changes: of the parameters, by name, where a remedy made the model; none otherwise.
        remedies: every attempt, where there was more than one: its `changes`, whether it is a `fitted_prior`, its
            `verdict` and `reasons`, and whether it was `kept`.
        prior: fitted to the latents after training, where samples are not to come from N(0, I).
    """

    model: VAE
    likelihood: Likelihood
    image_shape: tuple[int, int, int]
    preprocessing: dict[str, Any]
    precision: str
    kept_epoch: int
    stopped: str | None
    train: dict[str, float]
    sha256: str
    changes: dict[str, Any] = field(default_factory=dict)
    remedies: list[dict[str, Any]] = field(default_factory=list)
    prior: Mixture | None = None
    valid: dict[str, Any] = field(default_factory=dict)

    @property
    def pixels(self) -> int:
        return math.prod(self.image_shape)

    def compute(self, device: torch.device | None = None) -> Compute:
        """The CPU, or the device given, in the precision of the training where it is the same kind."""
        return Compute(device or torch.device("cpu"), self.precision)


def save(
    folder: Path,
    model: VAE,
    architecture: dict[str, Any],
    image_shape: tuple[int, int, int],
    likelihood: Likelihood,
    preprocessing: dict[str, Any],
    precision: str,
    kept_epoch: int,
    stopped: str | None,
    train: dict[str, float],
    changes: dict[str, Any] | None = None,
    remedies: list[dict[str, Any]] | None = None,
    prior: Mixture | None = None,
    valid: dict[str, Any] | None = None,
) -> str:
    """Writes the model into a folder; returns the SHA-256 of its weights."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    _write(weights, folder / WEIGHTS)
    config = {
        "format": 1,
        "model": architecture,
        "image_shape": list(image_shape),
        "likelihood": dataclasses.asdict(likelihood),
        "preprocessing": preprocessing,
        "precision": precision,
        "kept_epoch": kept_epoch,
        "stopped": stopped,
        "train": train,
        "valid": valid or {},
        "changes": changes or {},
        "remedies": remedies or [],
    }
    (folder / PRIOR).unlink(missing_ok=True)  # of the model that was here before
    if prior is not None:
        _write(prior.tensors(), folder / PRIOR)
    (folder / CONFIG).write_text(json.dumps(config, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    return weights_hash(folder)


def _write(tensors: dict[str, Tensor], path: Path) -> None:
    """Raises: OSError: the disk is full or may not be written to, which safetensors says in its own words only."""
    path.write_bytes(to_bytes(tensors))


def load(folder: Path, device: torch.device | None = None) -> Saved:
    """Reads a model, in evaluation mode.

    Raises:
        InputError: a file is missing or damaged, or the weights do not fit the configuration.
    """
    config = read_config(folder)
    try:
        _check(config)
        weights = read_weights(folder / WEIGHTS)
        shape = tuple(config["image_shape"])
        _check_size(shape, config["model"], weights)
        model = VAE(
            shape,
            learned_sigma="log_sigma" in weights,
            likelihood=config["likelihood"]["kind"],
            **config["model"],
        )
        model.load_state_dict(weights)
        if wrong := [n for n, t in model.state_dict().items() if t.dtype != weights[n].dtype]:
            raise ValueError(f"{wrong[0]} is of {weights[wrong[0]].dtype}")
        model = to_device(model, device or torch.device("cpu"))
        return Saved(
            model=model.eval(),
            likelihood=Likelihood(**config["likelihood"]),
            image_shape=shape,
            preprocessing=config["preprocessing"],
            precision=config["precision"],
            kept_epoch=config["kept_epoch"],
            stopped=config["stopped"],
            train=config["train"],
            sha256=weights_hash(folder),
            changes=_check_changes(config.get("changes", {})),
            remedies=config.get("remedies", []),
            prior=_read_prior(folder / PRIOR, model.latent_dim),
            valid=_check_valid(config.get("valid", {})),
        )
    except (KeyError, TypeError, ValueError, IndexError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[-1].strip()
        raise InputError(f"{folder}: weights and {CONFIG} do not fit together: {reason}") from None


class _Attempt(BaseModel):
    changes: dict[str, Any]
    fitted_prior: bool
    verdict: str
    reasons: list[str]
    kept: bool


class _Valid(BaseModel):
    model_config = ConfigDict(strict=True, allow_inf_nan=False)

    images: int | None = None
    score_percentiles: Annotated[list[float], Field(min_length=101, max_length=101)] | None = None


class _Config(BaseModel):
    model_config = ConfigDict(strict=True, allow_inf_nan=False)

    format: Literal[1]
    model: Model
    image_shape: Annotated[
        list[Annotated[int, Field(ge=1, le=LARGEST_IMAGE)]], Field(min_length=3, max_length=3)
    ]
    likelihood: dict[str, Any]
    preprocessing: dict[str, Any]
    precision: Literal["fp32", "bf16"]
    kept_epoch: Annotated[int, Field(ge=0)]
    stopped: str | None
    train: dict[str, float | None]
    changes: dict[str, Any] = {}
    remedies: list[_Attempt] = []
    valid: _Valid = _Valid()


def _check(config: dict[str, Any]) -> None:
    """Raises: ValueError: a value of another kind, or one that would give wrong numbers rather than an error."""
    try:
        _Config.model_validate(config)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise ValueError(f"{place}: {first['msg']}" if place else first["msg"]) from None
    sides = zip(("channels", "height", "width"), config["image_shape"], strict=True)
    if any(config["preprocessing"].get(name, side) != side for name, side in sides):
        raise ValueError(f"preprocessing does not give images of image_shape = {config['image_shape']}")
    kind, sigma = config["likelihood"]["kind"], config["likelihood"]["sigma"]
    known = isinstance(sigma, int | float) and 0 < sigma < math.inf if kind == "gaussian" else sigma is None
    if kind not in ("gaussian", "bernoulli") or not known:
        raise ValueError(f"likelihood = {config['likelihood']!r} is none")


def _check_size(
    shape: tuple[int, int, int], architecture: dict[str, Any], weights: dict[str, Tensor]
) -> None:
    """Raises: ValueError: the file holds fewer weights than the fewest that such a network has.

    So a network is never larger than a few times the file that is to fill it.
    """
    channels, height, width = shape
    widths, latents = architecture["widths"], architecture["latent_dim"]
    first, last = channels * height * width, widths[-1]
    if architecture["architecture"] in ("conv", "autoregressive"):
        first, last = channels, last * (height >> len(widths)) * (width >> len(widths))
    fewest = 2 * last * latents + sum(a * b for a, b in itertools.pairwise((first, *widths)))
    if fewest > sum(tensor.numel() for tensor in weights.values()):
        raise ValueError(f"{WEIGHTS} holds fewer weights than such a model has, which is {fewest:,} or more")


def _check_changes(changes: Any) -> dict[str, Any]:
    """Raises: ValueError: more than a remedy may change: it must not choose thresholds, places or names."""
    if not isinstance(changes, dict) or not all(
        name.startswith(("model.", "objective.", "kl.", "train.")) and name not in FIXED for name in changes
    ):
        raise ValueError(f"changes = {changes!r} are no remedy's")
    return changes


def _check_valid(valid: Any) -> dict[str, Any]:
    """Raises: ValueError: the percentiles do not rise, so that no threshold could be read off them."""
    known = valid.get("score_percentiles") or []
    if any(low > high for low, high in itertools.pairwise(known)):
        raise ValueError("score_percentiles do not rise")
    return valid


def _read_prior(path: Path, latents: int) -> Mixture | None:
    """Raises: ValueError: it is no mixture over so many latents."""
    if not path.exists():
        return None
    prior = Mixture(**read_weights(path))
    components = len(prior.weights)
    fits = prior.means.shape == (components, latents) and prior.scales.shape == (components, latents, latents)
    numbers = all(
        tensor.dtype == torch.float64 and bool(tensor.isfinite().all()) for tensor in prior.tensors().values()
    )
    cholesky = fits and torch.equal(prior.scales, prior.scales.tril()) and (_diagonal(prior.scales) > 0).all()
    if not numbers or not cholesky or (prior.weights < 0).any() or abs(float(prior.weights.sum()) - 1) > 1e-6:
        raise ValueError(f"{path.name} is no mixture over {latents} latents")
    return prior


def _diagonal(matrices: Tensor) -> Tensor:
    return matrices.diagonal(dim1=-2, dim2=-1)


def read_config(folder: Path) -> dict[str, Any]:
    try:
        return json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(
            f"{folder} holds no model: {CONFIG} is missing; `dvc repro train` makes it"
        ) from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{folder / CONFIG} is damaged: {error}") from None


def read_weights(path: Path) -> dict[str, Tensor]:
    """Reads a safetensors file; anything else, a pickle above all, is refused."""
    try:
        if path.exists() and not path.is_file():  # opening a pipe would wait for ever
            raise InputError(f"{path} is not a safetensors file but a folder, a pipe or a device")
        return load_file(path)
    except FileNotFoundError:
        raise InputError(f"{path} does not exist") from None
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path} is not a safetensors file: {error}") from None


def weights_hash(folder: Path) -> str:
    try:
        with (folder / WEIGHTS).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        raise InputError(
            f"{folder} holds no model: {WEIGHTS} is missing; `dvc repro train` makes it"
        ) from None
