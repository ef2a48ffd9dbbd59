"""All parameters of `params.yaml`, and which of them cannot be combined."""

from pydantic import Field, model_validator

from vae.config.sections import KL, Data, Evaluate, Model, Monitor, Objective, Preflight, Promote, Section, Train, Wish


class Parameters(Section):
    seed: int = Field(ge=0, lt=2**32, default=0)
    data: Data = Data()
    model: Model = Model()
    objective: Objective = Objective()
    kl: KL = KL()
    preflight: Preflight = Preflight()
    train: Train = Train()
    monitor: Monitor = Monitor()
    evaluate: Evaluate = Evaluate()
    promote: Promote = Promote()

    @model_validator(mode="after")
    def _network_fits_the_images(self) -> "Parameters":
        height, width = self.data.image_size
        depth, residual = len(self.model.widths), self.model.architecture in ("residual", "autoencoder_kl")
        times = self.model.factor.bit_length() - 1
        most = min(height, width).bit_length() - 1 + depth - times
        if min(height, width) < self.model.factor:
            raise ValueError(
                f"model.widths = {self.model.widths} halves the image {times} times, too often for "
                f"data.image_size = {height}×{width}; give at most {most} widths"
            )
        if not residual and (self.model.blocks > 1 or self.model.attention):
            name = "attention = true" if self.model.attention else f"blocks = {self.model.blocks}"
            raise ValueError(
                f"model.{name} needs model.architecture = residual or autoencoder_kl; it is {self.model.architecture}"
            )
        if self.train.gradient_checkpointing and (not residual or self.model.batch_norm):
            raise ValueError(
                "train.gradient_checkpointing = true needs model.architecture = residual with model.batch_norm = false "
                "(group norm): batch norm would count every batch twice"
            )
        if self.data.binarise != "none" and self.data.channels != 1:
            raise ValueError(f"data.binarise = {self.data.binarise} needs data.channels = 1")
        return self

    @model_validator(mode="after")
    def _map_fits_the_rest(self) -> "Parameters":
        self.model.check_map(*self.data.image_size)
        self.model.check_levels(*self.data.image_size)
        remedies = {
            f"model.prior = {self.model.prior}": self.model.prior != "standard" and "set it to standard",
            "train.aggressive_encoder = true": self.train.aggressive_encoder and "set it to false",
            "preflight.latent_dims = true": self.preflight.latent_dims and "set it to false",
        }
        for name, remedy in remedies.items():
            if remedy and self.model.latent_shape is not None:
                raise ValueError(f"{name} does not go with a map of latents; {remedy}, or model.latent_shape to null")
        return self

    @model_validator(mode="after")
    def _levels_fit_the_rest(self) -> "Parameters":
        remedies = {
            "train.aggressive_encoder": self.train.aggressive_encoder,
            "preflight.latent_dims": self.preflight.latent_dims,
            "preflight.pilot": self.preflight.pilot is True,
        }
        for name, is_set in remedies.items():
            if is_set and self.model.lower_latents is not None:
                raise ValueError(
                    f"{name} = true does not go with two levels of latents; set {name} to false, or "
                    "model.lower_latents to null"
                )
        return self

    @model_validator(mode="after")
    def _autoencoder_kl_is_that_of_diffusers(self) -> "Parameters":
        model, objective = self.model, self.objective
        gives_mean = objective.likelihood not in ("bernoulli", "logistic_mixture")
        remedies = {
            "model.batch_norm = true": model.batch_norm and "it has group norm; set it to false",
            f"model.mean_batch_norm = {model.mean_batch_norm}": model.mean_batch_norm is not None and "set it to null",
            f"objective.sigma = {objective.sigma}": objective.sigma == "pixel" and "its decoder gives a mean alone",
            f"objective.likelihood = {objective.likelihood}": not gives_mean
            and "its decoder gives a mean; set gaussian",
        }
        for name, remedy in remedies.items():
            if remedy and model.architecture == "autoencoder_kl":
                raise ValueError(f"{name} does not go with model.architecture = autoencoder_kl: {remedy}")
        return self

    @model_validator(mode="after")
    def _sigma_has_a_meaning(self) -> "Parameters":
        objective = self.objective
        sigma = f"objective.sigma = {objective.sigma}"
        if objective.sigma != "optimal" and objective.likelihood == "bernoulli":
            raise ValueError(f"{sigma}: a Bernoulli likelihood has no sigma; leave it at optimal")
        if objective.sigma != "optimal" and objective.likelihood == "logistic_mixture":
            raise ValueError(f"{sigma}: the decoder gives the scales of a logistic_mixture; leave it at optimal")
        if objective.sigma != "optimal" and objective.reduction == "mean":
            raise ValueError(f"{sigma}: with objective.reduction = mean, kl.max_weight sets it; leave it at optimal")
        if isinstance(self.kl.max_weight, Wish) and self.kl.max_weight.rmse and not objective.has_sigma:
            raise ValueError(
                f"kl.max_weight = {{rmse: {self.kl.max_weight.rmse:g}}} needs a likelihood with a sigma, "
                f"and {objective.likelihood} has none; give a rate"
            )
        if objective.reduction == "mean" and self.kl.max_weight == 0 and objective.likelihood == "gaussian":
            raise ValueError("kl.max_weight = 0 with objective.reduction = mean means σ = 0; give, for example, 0.001")
        return self

    @model_validator(mode="after")
    def _levels_have_probabilities(self) -> "Parameters":
        likelihood = f"objective.likelihood = {self.objective.likelihood}"
        if not self.objective.is_discretised:
            return self
        if self.data.binarise != "none":
            raise ValueError(
                f"{likelihood} is one of 256 grey levels, of which data.binarise = {self.data.binarise} leaves two; "
                "set data.binarise to none, or the likelihood to bernoulli"
            )
        if self.objective.reduction == "mean":
            raise ValueError(f"{likelihood} is in nats: objective.reduction = mean has no such loss; set it to sum")
        return self

    @model_validator(mode="after")
    def _prior_fits_the_rest(self) -> "Parameters":
        model, prior = self.model, f"model.prior = {self.model.prior}"
        if model.prior == "standard":
            return self
        if self.kl.free_bits:
            raise ValueError(
                f"kl.free_bits = {self.kl.free_bits:g} with {prior}: the rate against a learned prior is not a sum "
                "over latents; set kl.free_bits_total instead"
            )
        if model.mean_batch_norm is not None or model.logvar_max < 0:
            name = "logvar_max" if model.mean_batch_norm is None else "mean_batch_norm"
            raise ValueError(
                f"model.{name} = {getattr(model, name):g} keeps the rate up against N(0, I) only; {prior} would follow "
                f"the latents: set it to {'10' if name == 'logvar_max' else 'null'}, or model.prior to standard"
            )
        if self.train.aggressive_encoder and model.prior == "vamp":
            raise ValueError(
                f"train.aggressive_encoder = true with {prior}: the encoder is part of this prior and cannot converge "
                "on it; set train.aggressive_encoder to false, or model.prior to mixture or flow"
            )
        if model.prior == "flow" and model.latent_dim == 1:
            raise ValueError(f"{prior} needs model.latent_dim of 2 or more; take a mixture for a single latent")
        return self

    @model_validator(mode="after")
    def _control_fits_the_objective(self) -> "Parameters":
        objective = self.objective
        if self.kl.control != "schedule" and objective.reduction == "mean":
            raise ValueError(
                "kl.capacity, kl.target_kl and kl.reconstruction_target are in nats per image: "
                "they need objective.reduction = sum"
            )
        has_one_sigma = objective.sigma == "learned" or not isinstance(objective.sigma, str)
        if self.kl.control == "geco" and not (objective.has_sigma and has_one_sigma):
            raise ValueError(
                f"kl.reconstruction_target = {self.kl.reconstruction_target:g} (GECO) needs a likelihood with one "
                f"objective.sigma, learned or a number; it is {objective.likelihood}, {objective.sigma}"
            )
        if self.train.aggressive_encoder and self.kl.control in ("pi", "geco"):
            target = "target_kl" if self.kl.control == "pi" else "reconstruction_target"
            raise ValueError(
                f"train.aggressive_encoder = true with kl.{target} = {getattr(self.kl, target):g}: the encoder cannot "
                f"converge on an objective that a controller moves; set kl.{target} to null"
            )
        return self

    @model_validator(mode="after")
    def _features_fit_the_rest(self) -> "Parameters":
        if not self.objective.uses_features:
            return self
        name = "align" if self.objective.align else "perceptual"
        asked = f"objective.{name} = {getattr(self.objective, name):g}"
        if self.objective.importance_samples_train > 1:
            raise ValueError(f"{asked} needs objective.importance_samples_train = 1")
        if self.train.aggressive_encoder:
            raise ValueError(f"{asked} and train.aggressive_encoder = true cannot be combined; set one to its default")
        if self.objective.perceptual and self.model.architecture == "autoregressive":
            raise ValueError(f"{asked}: an autoregressive decoder gives no whole picture in training; set it to 0")
        return self

    @model_validator(mode="after")
    def _importance_samples_fit_the_objective(self) -> "Parameters":
        samples = self.objective.importance_samples_train
        if samples == 1:
            return self
        name = f"objective.importance_samples_train = {samples}"
        if self.objective.sigma == "optimal" and self.objective.has_sigma:
            raise ValueError(f"{name} needs an objective.sigma other than optimal, or a likelihood without a sigma")
        if self.kl.control != "schedule" or self.kl.free_bits or self.kl.free_bits_total:
            raise ValueError(f"{name} needs a schedule alone: its bound has no rate for a control or free bits")
        if self.train.aggressive_encoder:
            raise ValueError(f"train.aggressive_encoder = true and {name} cannot be combined; set one to its default")
        return self
