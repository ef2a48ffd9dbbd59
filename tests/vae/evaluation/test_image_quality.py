import math

import pytest
import torch

from vae.evaluation.image_quality import psnr, ssim, ssim_window


def test_ssim_of_equal_pictures_is_one_at_every_size() -> None:
    for shape in ((2, 1, 8, 8), (2, 3, 9, 20), (2, 3, 32, 10), (2, 1, 64, 64)):
        x = torch.rand(shape, generator=torch.Generator().manual_seed(0))
        assert ssim(x, x).tolist() == pytest.approx([1, 1], abs=1e-5)
        assert (ssim(x, 1 - x) < 0.5).all()


def test_ssim_of_flat_pictures_is_wangs_luminance_term() -> None:
    a, b, c1 = 0.01, 0.03, 0.01**2  # so dark that c1 counts
    flat = torch.ones(1, 1, 16, 16)
    assert float(ssim(a * flat, b * flat)) == pytest.approx((2 * a * b + c1) / (a**2 + b**2 + c1), rel=1e-4)


def test_ssim_window_is_odd_and_fits() -> None:
    sizes = ((8, 8), (9, 30), (10, 10), (64, 11), (256, 256))
    assert [ssim_window(*size) for size in sizes] == [7, 9, 9, 11, 11]


def test_psnr() -> None:
    assert psnr(0.01) == pytest.approx(20)
    assert psnr(0.0) == math.inf
