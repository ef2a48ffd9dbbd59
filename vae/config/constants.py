"""Constants that more than one package uses."""

import math

SPLITS = ("train", "valid", "test")

# How the reason begins for a file that is no image and no fault: it is listed in the manifest and not counted.
LITTER, COMPANION = "litter: ", "companion: "
SKIPPED = (LITTER, COMPANION)

# A decoder cannot be surer of a pixel than the rounding to 256 grey levels allows (uniform error of 1/255).
SMALLEST_SIGMA = 1 / (255 * math.sqrt(12))

COLLAPSED_BELOW_NATS = 1.0  # of KL per image, over all latents: below it the latents carry nothing of use
EFFICIENTNET = "efficientnet_lite0"  # the frozen network that the extra `features` brings
