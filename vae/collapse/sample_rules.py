"""Whether samples are as good as reconstructions, and of which prior."""

from vae.collapse import remedies
from vae.collapse.evidence import Evidence, Verdict, effective_beta, settled
from vae.config.resolved import ResolvedParameters
from vae.config.text import two_digits
from vae.priors.standard import STANDARD
from vae.samples.evidence import SampleEvidence
from vae.samples.quality import SampleQuality

POOR_SHARE = 0.6  # of what reconstructions reach
MISMATCH_NATS = 2.0  # of KL(q(z) ‖ p), at which a seventh of p lies where images are encoded
SMALL_BETA = 0.5  # below it, poor samples are first of all those of too low a weight


def prior_mismatch(p: ResolvedParameters, e: Evidence) -> Verdict | None:
    """Whether samples of the fitted prior are poor, and the prior of the ELBO is no better or certified to be far.

    Not of a map of latents: unless it is small, what places have in common is left to a model of its own.
    """
    if p.model.latent_shape is not None:
        return None
    if e.samples is None or not (_own_is_poor(e.samples) and is_poor(e.samples.fitted, e.samples)):
        return None
    own, fitted = _article(e.own_prior), _article(e.prior)
    if p.model.lower_latents is not None:
        summary = f"Samples from {own} are poor, and no prior is fitted to two levels of latents."
    elif e.prior == e.own_prior:
        summary = f"Samples from {own} are poor, and no other prior fits the latents better."
    elif is_poor(e.samples.standard, e.samples):
        summary = f"Samples are poor, from {own} and from {fitted} fitted to the latents alike."
    else:
        summary = (
            f"Samples from {fitted} fitted to the latents are poor, and {own} is {_nats(e.samples)} from the latents."
        )
    beta, to_elbo = effective_beta(p, e), remedies.elbo(p, e.predicted)
    if p.kl.control == "schedule" and beta is not None and beta < SMALL_BETA and to_elbo:
        reasons = [f"effective beta of {beta:.2g}, below {SMALL_BETA:g}", *samples_in_numbers(e)]
        return Verdict("prior_mismatch", summary, reasons, to_elbo)
    steady = settled(p, e)
    remedy = {} if steady else remedies.longer_training(p, 4 * p.train.epochs, len(e.history))
    if not remedy or p.model.latent_dim >= remedies.MANY_LATENTS:
        remedy |= remedies.simpler_latents(p, e.predicted)
    advice = [remedies.relaxed(p)] if steady and p.kl.control != "schedule" else []
    return Verdict("prior_mismatch", summary, samples_in_numbers(e), remedy, advice)


def is_poor(quality: SampleQuality, among: SampleEvidence) -> bool:
    """Whether too few of the samples lie among the images of the data, or too few of those among the samples.

    Precision alone is high for samples that are all alike, and recall for samples that are scattered.
    """
    return any(
        getattr(quality, measure).value < POOR_SHARE * getattr(among.reconstructions, measure).value
        for measure in ("precision", "recall", "coverage")
    )


def _own_is_poor(samples: SampleEvidence) -> bool:
    """By the pictures, or by the certificate: 2 standard errors beyond doubt."""
    certain = samples.aggregate_kl.value - 2 * samples.aggregate_kl.standard_error
    return certain > MISMATCH_NATS or is_poor(samples.standard, samples)


def about_samples(e: Evidence) -> str:
    """A sentence on what to sample from; none where either prior will do."""
    if e.samples is None or e.prior == e.own_prior:
        return ""
    own, fitted, nats = _article(e.own_prior), _article(e.prior), _nats(e.samples)
    if is_poor(e.samples.fitted, e.samples):
        return f" Sample from {own}: samples from its fitted prior ({fitted}) are poor."
    if not _own_is_poor(e.samples):
        return ""
    why = f"the latents of images are {nats} from {own}"
    if is_poor(e.samples.standard, e.samples):
        why = f"samples from {own} are poor, since the latents of images are {nats} from it"
    return f" Sample from its fitted prior ({fitted}): {why}."


def _nats(samples: SampleEvidence) -> str:
    return f"at least {two_digits(samples.aggregate_kl.value)} nats"


def samples_in_numbers(e: Evidence) -> list[str]:
    if e.samples is None:
        return []
    kinds = [(e.own_prior, e.samples.standard), ("reconstructions", e.samples.reconstructions)]
    if e.prior != e.own_prior:
        kinds.insert(0, ("the fitted prior", e.samples.fitted))
    measured = "; ".join(
        f"{measure} {' / '.join(f'{getattr(found, measure).value:.2f}' for _, found in kinds)}"
        for measure in ("precision", "recall", "coverage")
    )
    names = " / of ".join(name for name, _ in kinds[:-1])
    lines = [f"samples of {names} / reconstructions, beside training images: {measured}"]
    if e.prior != e.own_prior:
        p, bound = STANDARD if e.own_prior == STANDARD else "p(z)", e.samples.aggregate_kl
        lines.append(f"KL(q(z) ‖ {p}) of at least {bound.value:.3g} ± {bound.standard_error:.2g} nats")
    return lines


def _article(prior: str) -> str:
    return prior if prior == STANDARD else f"a {prior}"
