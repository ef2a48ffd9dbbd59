"""What matters in an image, beside the negative ELBO: losses on the features of a frozen network.

loss = D + β·R + λ_a·A + λ_p·P          in nats per image; the ELBO is still −D − R
A = |W·μ + b − f(x)|² / F + γ·|W|² / F  alignment: latents that predict its F pooled features, centred and with 1 as
                                        the mean of their variances, by a ridge regression; the first part is the share
                                        of their variance over the training split that the latents do not explain
                                        (after Yao 2025, "Reconstruction vs. generation", VA-VAE)
P = Σ_l mean_places |n_l(x) − n_l(x̂)|²   perceptual: its maps of image and decoded image, normalised over channels
                                        (Zhang 2018, "LPIPS", equation 1, all weights equal), the last one pooled:
                                        what a classifier reads
"""

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from vae.compute.batches import in_order
from vae.features.network import FrozenNetwork

BATCH = 64  # images at a time, for the features of the training split
EVERY = 2  # image of a batch reaches the network: means over the batch stay unbiased, in half the time
RIDGE = 1.0  # γ, as if μ had noise of this variance: else W learns the training images by heart (docs/features.md)


class FeatureLoss(nn.Module):
    """`loss, logs = features(x, picture, mu)`.

    Args:
        align, perceptual: λ_a and λ_p, in nats; 0 leaves the term out.
        train_images: uint8 (N, H, W, C), whose features give the scale of A.

    Attributes:
        head: W and b, trained with the model and no part of it.
    """

    mean: Tensor
    scale: Tensor

    def __init__(
        self,
        network: FrozenNetwork,
        align: float,
        perceptual: float,
        latent_dim: int,
        train_images: np.ndarray,
        device: torch.device,
    ) -> None:
        super().__init__()
        self.network, self.align, self.perceptual = network, align, perceptual
        self.head = None
        if align:
            mean, scale = moments(network, train_images, device)
            self.register_buffer("mean", mean, persistent=False)
            self.register_buffer("scale", scale, persistent=False)
            self.head = nn.Linear(latent_dim, len(mean)).to(device)

    def forward(self, x: Tensor, picture: Tensor, mu: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """x, picture: (B, C, H, W), pixels in [0, 1]; mu: (B, Z)."""
        loss, logs = mu.new_zeros(()), {}
        x, picture, mu = x[::EVERY], picture[::EVERY], mu[::EVERY]
        if self.head is not None:
            alignment = (self.head(mu).float() - self.targets(x)).square().mean()
            ridge = RIDGE * self.head.weight.square().sum() / self.head.out_features
            loss, logs["alignment"] = loss + self.align * (alignment + ridge), alignment.detach()
        if self.perceptual:
            distance = perceptual_distance(self.network, x, picture).mean()
            loss, logs["perceptual"] = loss + self.perceptual * distance, distance.detach()
        return loss, logs

    @torch.no_grad()
    def targets(self, x: Tensor) -> Tensor:
        """Pooled features, centred, with 1 as the mean of their variances over the training split: (B, F), float32.

        Features keep their proportions: what varies most says most about an image, and standardised features would
        give as much weight to those that hardly vary.
        """
        with torch.autocast(x.device.type, enabled=False):
            return (self.network.pooled(x) - self.mean) / self.scale

    def head_state(self) -> dict[str, Tensor] | None:
        return None if self.head is None else self.head.state_dict()

    def load_head_state(self, state: dict[str, Tensor] | None) -> None:
        if self.head is not None:
            assert state is not None
            self.head.load_state_dict(state)


def perceptual_distance(network: FrozenNetwork, x: Tensor, picture: Tensor) -> Tensor:
    """P of each image: (B, C, H, W) twice → (B,); 0 for equal pictures, at most 4 for each map."""
    with torch.autocast(x.device.type, enabled=False):  # its bf16 would be no faster: most of its layers are depthwise
        with torch.no_grad():
            originals = network.maps(x)
        pictured = network.maps(picture)
    distances = [
        (_unit(original) - _unit(decoded)).square().sum(1).mean((1, 2))
        for original, decoded in zip(originals, pictured, strict=True)
    ]
    return torch.stack(distances).sum(0)


@torch.no_grad()
def moments(network: FrozenNetwork, images: np.ndarray, device: torch.device) -> tuple[Tensor, Tensor]:
    """Of the pooled features of uint8 images (N, H, W, C): their means, (F,), and the root of their mean variance."""
    sums = []
    for x in in_order(images, BATCH, device):
        features = network.pooled(x).double()
        sums.append(torch.stack([features.sum(0), features.square().sum(0)]))
    mean, mean_square = torch.stack(sums).sum(0) / len(images)
    variance = (mean_square - mean.square()).mean()
    return mean.float(), variance.clamp_min(1e-12).sqrt().float()


def _unit(h: Tensor) -> Tensor:
    return functional.normalize(h, dim=1)
