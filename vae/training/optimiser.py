"""The optimiser: Muon for the weights of layers, AdamW (Loshchilov & Hutter 2019) for the rest; or AdamW for all."""

from typing import Any

import torch
from torch import nn

from vae.config.resolved import ResolvedTrain
from vae.models.networks import GatedLinear
from vae.models.residual import SelfAttention
from vae.models.vae import VAE
from vae.training.muon import Muon

# Muon moves a weight equally far in all directions: to a regression on few images most of that is noise, which reaches
# the encoder. So a head has AdamW, at a tenth of Muon's rate: 0.4, 0.1 and 0.02 were tried on leaves.
HEAD_OF_MUON = 0.1


class Optimiser:
    """One optimiser or two, as one, with one learning rate. Biases, norms, a learned σ and prior do not decay."""

    def __init__(self, model: VAE, train: ResolvedTrain, head: nn.Linear | None = None) -> None:
        """head: of an alignment, a layer that is trained beside the model."""
        weights = [weight for weight in model.parameters() if weight.requires_grad]
        prior = {id(weight) for weight in model.prior.parameters()} if model.prior is not None else set()
        layers, others = (
            [w for w in weights if (w.dim() > 1 and id(w) not in prior) == layer] for layer in (True, False)
        )
        # Several maps of one input: μ and ln σ²; value and gate; queries, keys and values.
        several: list[tuple[nn.Linear | nn.Conv2d, int]] = [(layer, 2) for layer in model.gaussian_layers]
        several += [(module.linear, 2) for module in model.modules() if isinstance(module, GatedLinear)]
        several += [(module.projection, 3) for module in model.modules() if isinstance(module, SelfAttention)]
        maps = {id(module.weight): number for module, number in several}
        rate, decay = train.learning_rate, train.weight_decay
        muon = [
            {"params": [weight for weight in layers if maps.get(id(weight), 1) == number], "maps": number}
            for number in sorted({1, *maps.values()})
        ]
        adamw: list[dict[str, Any]] = [{"params": others, "weight_decay": 0.0}]
        self.parts: list[torch.optim.Optimizer] = []
        if head is not None:
            scale = HEAD_OF_MUON if train.optimizer == "muon" else 1.0
            adamw.append({"params": list(head.parameters()), "weight_decay": 0.0, "scale": scale})
        if train.optimizer == "muon":
            self.parts.append(Muon(muon, lr=rate, weight_decay=decay))
        else:
            adamw.append({"params": layers, "weight_decay": decay})
        self.parts.append(torch.optim.AdamW(adamw, lr=rate, fused=True))

    def set_learning_rate(self, learning_rate: float) -> None:
        for part in self.parts:
            for group in part.param_groups:
                group["lr"] = learning_rate * group.get("scale", 1.0)

    def zero_grad(self) -> None:
        for part in self.parts:
            part.zero_grad()

    def step(self) -> None:
        for part in self.parts:
            part.step()

    def state_dict(self) -> list[dict[str, Any]]:
        return [part.state_dict() for part in self.parts]

    def load_state_dict(self, states: list[dict[str, Any]]) -> None:
        for part, state in zip(self.parts, states, strict=True):
            part.load_state_dict(state)
