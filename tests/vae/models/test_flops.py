"""Operations of a training, counted by hand."""

from helpers.trainings import params

from vae.models.flops import training_flops
from vae.models.pixelcnn import FIRST, HIDDEN, LAYERS


def flops(architecture: str, width: int) -> float:
    return training_flops(params({"model.architecture": architecture, "model.widths": [width], "model.latent_dim": 2}))


def test_of_an_mlp() -> None:
    assert flops("mlp", 10) == 3 * 2 * (64 * 10 + 10 * 4 + 2 * 10 + 10 * 64)


def test_pseudo_inputs_are_encoded_once_for_a_batch() -> None:
    changes = {"model.architecture": "mlp", "model.widths": [10], "model.latent_dim": 2, "train.batch_size": 16}
    vamp = {"model.prior": "vamp", "model.prior_components": 40}
    more = training_flops(params(changes | vamp)) - training_flops(params(changes))
    assert more == 3 * 2 * (64 * 10 + 10 * 4) * 40 / 16


def test_of_convolutions() -> None:
    down = up = 16 * 1 * 5 * 16  # a 4×4 kernel at 4×4 positions
    linear = 5 * 16 * 4 + 2 * 5 * 16
    assert flops("conv", 5) == 3 * 2 * (down + up + linear)
    masked = FIRST**2 * 5 + LAYERS * HIDDEN**2 * 25
    ones = (LAYERS + 1) * 25 + 5
    assert flops("autoregressive", 5) == 3 * 2 * (down + 5 * up + linear + 64 * (masked + ones))
