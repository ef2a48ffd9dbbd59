import numpy as np
import pytest
from helpers.by_hand import pictures

from vae.metrics import moments


def test_pixel_moments_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(moments, "CHUNK", 7)
    images = pictures()
    mean, variance = moments.pixel_moments(images)
    np.testing.assert_allclose(mean, (images / 255).mean(0), atol=1e-12)
    np.testing.assert_allclose(variance, (images / 255).var(0), atol=1e-12)
