"""A masked autoregressive flow over the latents (Papamakarios 2017)."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

TRANSFORMS, HIDDEN = 3, (128, 128)
STEPS, BATCH, LEARNING_RATE = 2000, 512, 2e-3
CHECK = 100  # steps between looks at the held-out images


@dataclass(frozen=True, eq=False)
class Flow:
    """network: a `zuko.flows.MAF` over z, float32."""

    network: Any

    @torch.no_grad()
    def log_prob(self, z: Tensor) -> Tensor:
        """ln p(z): (..., Z) → (...), in nats, float64."""
        return self.network().log_prob(z.float().cpu()).double()

    @torch.no_grad()
    def sample(self, count: int, generator: torch.Generator) -> Tensor:
        """(count, Z), float32, on the CPU."""
        flow = self.network()
        noise = torch.randn(count, *flow.base.event_shape, generator=generator)
        return flow.transform.inv(noise)

    def tensors(self) -> dict[str, Tensor]:
        return {name: tensor.contiguous() for name, tensor in self.network.state_dict().items()}


def read(tensors: dict[str, Tensor], latents: int) -> Flow:
    """Raises: RuntimeError, ValueError: they are not those of such a flow over so many latents."""
    network = build(latents)
    built = {name: buffer.clone() for name, buffer in network.named_buffers()}  # masks and orders make it a density
    network.load_state_dict(tensors)
    if changed := [name for name, buffer in network.named_buffers() if not torch.equal(buffer, built[name])]:
        raise ValueError(f"{changed[0]} of the prior's flow differs from that of any flow over {latents} latents")
    if not all(bool(t.isfinite().all()) for t in network.parameters()):
        raise ValueError("weights of the prior's flow are not finite")
    return Flow(network)


def fit(mu: NDArray[np.float32], logvar: NDArray[np.float32], held_out: NDArray[np.float64], seed: int) -> Flow:
    """By maximum likelihood of samples z ~ q(z|x), drawn anew at each step; the best on the held-out z is kept.

    mu, logvar: (N, Z). held_out: (M, Z), samples of other images.
    """
    random = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = build(mu.shape[1])
    means, deviations, judged = (torch.from_numpy(a).float() for a in (mu, np.exp(0.5 * logvar), held_out))
    optimiser = torch.optim.Adam(network.parameters(), LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, STEPS)
    best, kept = -np.inf, network.state_dict()
    for step in range(1, STEPS + 1):
        chosen = torch.randint(len(means), (BATCH,), generator=random)
        z = means[chosen] + deviations[chosen] * torch.randn(BATCH, mu.shape[1], generator=random)
        optimiser.zero_grad()
        (-network().log_prob(z).mean()).backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 10.0)
        optimiser.step()
        schedule.step()
        if step % CHECK == 0:
            with torch.no_grad():
                found = float(network().log_prob(judged).mean())
            if found > best:
                best, kept = found, {name: tensor.clone() for name, tensor in network.state_dict().items()}
    network.load_state_dict(kept)
    return Flow(network.eval().requires_grad_(False))


def build(latents: int) -> Any:
    """A `zuko.flows.MAF` with weights of torch's random state."""
    from zuko.flows import MAF

    return MAF(latents, transforms=TRANSFORMS, hidden_features=HIDDEN)
