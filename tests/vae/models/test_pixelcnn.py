"""The autoregressive decoder: what a pixel sees, a likelihood that sums to one, what it draws, how it is judged."""

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from helpers.trainings import CPU, TRAIN, VALID, params, run

from vae.evaluation.image_quality import central_quality
from vae.evaluation.importance_weighted import importance_weighted_bound
from vae.inference import generate, scoring
from vae.metrics import measurement
from vae.metrics.mean_image import MeanImage
from vae.models.likelihood import GAUSSIAN, Likelihood
from vae.models.pixelcnn import REACH
from vae.models.vae import VAE, build
from vae.training.loop import Trained

Shape = tuple[int, int, int]
AUTOREGRESSIVE: dict[str, Any] = {"model.architecture": "autoregressive"}


def vae(shape: Shape, **changes: Any) -> VAE:
    torch.manual_seed(0)
    given = {"latent_dim": 3, "widths": [5], "batch_norm": True}
    return VAE(shape, "autoregressive", **{**given, **changes})


def drawn(images: int, model: VAE, shape: Shape) -> tuple[torch.Tensor, torch.Tensor]:
    random = torch.Generator().manual_seed(1)
    return torch.randn(images, model.latent_dim, generator=random), torch.rand(images, *shape, generator=random)


@pytest.mark.parametrize("shape", [(1, 6, 5), (3, 4, 9), (2, 18, 3)])
@pytest.mark.parametrize("training_mode", [True, False])
def test_a_pixel_is_predicted_from_z_and_those_before_it_alone(shape: Shape, training_mode: bool) -> None:
    """The Jacobian of the output by the image: exactly zero at and after the pixel itself, in raster order."""
    model, (channels, height, width) = vae(shape).train(training_mode), shape
    z, x = drawn(2, model, shape)
    pixels = height * width
    jacobian = torch.autograd.functional.jacobian(lambda image: model.decode(z, image), x)
    by_pixel = jacobian.reshape(2, channels, pixels, 2, channels, pixels).abs().amax((0, 1, 3, 4))
    assert by_pixel.shape == (pixels, pixels)
    assert torch.equal(by_pixel.triu(), torch.zeros(pixels, pixels))
    for i, j in itertools.product(range(pixels), repeat=2):
        rows, columns = i // width - j // width, abs(i % width - j % width)
        if rows > REACH or columns > REACH:
            assert by_pixel[i, j] == 0
    for i in range(1, pixels):
        assert by_pixel[i, i - 1] > 0 or i % width == 0  # the neighbour to the left
        assert i < width or by_pixel[i, i - width] > 0  # and the one above
    assert REACH < 18 and (height < 18 or by_pixel[-1, -1 - REACH * width] > 0)


def test_every_pixel_sees_z() -> None:
    model = vae((1, 12, 9)).eval()
    z, x = drawn(1, model, (1, 12, 9))
    jacobian = torch.autograd.functional.jacobian(lambda latents: model.decode(latents, x), z)
    assert (jacobian.abs().amax((0, 4, 5)) > 0).all()


def test_its_likelihood_sums_to_one_over_all_images() -> None:
    """There are 512 of 3×3 pixels: a product of conditional probabilities is a distribution if none looks ahead."""
    model = vae((1, 3, 3), likelihood=Likelihood("bernoulli")).eval()
    for weight in model.decoder.parameters():
        weight.data.mul_(1.5)  # far from a fair coin
    images = torch.tensor(list(itertools.product((0.0, 1.0), repeat=9))).view(512, 1, 3, 3)
    z = torch.randn(1, 3, generator=torch.Generator().manual_seed(2)).expand(512, 3)
    with torch.no_grad():
        log_prob = Likelihood("bernoulli").log_prob(images, model.decode(z, images))
    assert float(log_prob.double().exp().sum()) == pytest.approx(1, abs=1e-5)
    assert log_prob.std() > 0.5


@pytest.mark.parametrize(
    "likelihood",
    [
        GAUSSIAN,
        Likelihood("bernoulli"),
        Likelihood("discretised_logistic"),
        Likelihood("logistic_mixture", components=2),
    ],
)
@pytest.mark.parametrize("shape", [(1, 8, 21), (3, 19, 8)])
def test_what_it_draws_is_what_it_expects_of_its_own_picture(likelihood: Likelihood, shape: Shape) -> None:
    model = vae(shape, likelihood=likelihood).eval()
    model.decoder.output.weight.data.mul_(0.2)
    model.decoder.output.bias.data.fill_(0.4)
    if (start := likelihood.start(shape[0], 0.05)) is not None:
        model.start_output(start)
    z, _ = drawn(2, model, shape)
    with torch.no_grad():
        output = model.decode(z)
        assert output.shape == (2, likelihood.outputs(shape[0]), *shape[1:])
        picture = likelihood.mean(output).clamp(0, 1)
        torch.testing.assert_close(model.decode(z, picture), output, rtol=1e-4, atol=1e-5)

        # and the same pixel by pixel with the whole image, without windows
        slow = torch.zeros(2, *shape)
        for row, column in itertools.product(range(shape[1]), range(shape[2])):
            pixel = model.decode(z, slow)[..., row, column]
            slow[..., row, column] = likelihood.mean(pixel).clamp(0, 1)
    torch.testing.assert_close(picture, slow, rtol=1e-4, atol=1e-5)
    assert picture.std() > 0.01
    assert not torch.allclose(picture[0], picture[1], atol=1e-3)


def test_other_decoders_do_not_look_at_the_image() -> None:
    for architecture in ("conv", "mlp", "gated_mlp"):
        model = build(params({"model.architecture": architecture})).eval()
        z, x = drawn(3, model, (1, 8, 8))
        assert torch.equal(model.decode(z, x), model.decode(z))


@pytest.fixture(scope="module")
def trained() -> Trained:
    return run(params({**AUTOREGRESSIVE, "train.epochs": 25, "train.learning_rate": 0.01}))


def test_it_learns(trained: Trained) -> None:
    first, third, last = (trained.history[epoch] for epoch in (0, 2, -1))
    assert last["valid/mse_sampled"] < 0.6 * first["valid/mse_sampled"]
    assert last["valid/elbo"] > third["valid/elbo"]
    assert trained.train.elbo > MeanImage.of(TRAIN).elbo(TRAIN, GAUSSIAN) + 20


def test_scores_see_the_image_and_pictures_do_not(trained: Trained) -> None:
    model, likelihood = trained.model.eval(), trained.likelihood
    measured = measurement.measure(model, VALID, likelihood, CPU, 0)
    with torch.no_grad():
        x = torch.from_numpy(VALID).permute(0, 3, 1, 2).float() / 255
        mu, _ = model.encode(x)
        forced, free = model.decode(mu, x), model.decode(mu)
    errors = (x - forced).square().flatten(1).mean(1).numpy()
    assert measured.mse == pytest.approx(errors.mean(), rel=1e-4)
    quality, _ = central_quality(model, VALID, likelihood, CPU)
    np.testing.assert_allclose(quality, errors, rtol=1e-3)
    assert float((x - free).square().mean()) > 1.3 * measured.mse  # a picture of its own strays

    # the three bounds agree, as they can only if all are of the same p(x|z)
    per_image = scoring.elbo_per_image(model, VALID, likelihood, CPU)
    assert per_image.mean() == pytest.approx(measured.elbo, abs=2)
    bound = importance_weighted_bound(model, VALID, likelihood, CPU, 20, 0)
    assert measured.elbo - 1 < bound < measured.elbo + 10
    sigma = measurement.fitted_sigma(model, TRAIN, CPU, 0)
    # frozen before the latents were standardised, which rounds
    assert sigma == pytest.approx(likelihood.sigma, rel=1e-6)
    assert sigma == pytest.approx(math.sqrt(trained.train.mse_sampled), rel=0.1)

    shown = generate.reconstruct(model, VALID, likelihood, CPU)
    expected = free.clamp(0, 1).mul(255).round().byte().permute(0, 2, 3, 1).numpy()
    np.testing.assert_allclose(shown.astype(int), expected.astype(int), atol=1)
