"""Image sets of the collapse cases, generated from a seed and from two photos that scikit-learn bundles.

`python -m benchmarks.case_images` writes them to `data/collapse_cases/`, where `experiments/collapse/` reads them.
"""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

FOLDER = Path("data/collapse_cases")

Images = NDArray[np.uint8]
Floats = NDArray[np.float64]


def main() -> None:
    write(FOLDER)
    print(f"collapse cases: {', '.join(sorted(MAKERS))} in {FOLDER}")


def write(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, make in MAKERS.items():
        np.save(folder / f"{name}.npy", np.asarray(make()))


def photos(side: int, count: int) -> Images:
    """Random patches of the two photos at half resolution: (count, side, side, 3)."""
    from sklearn.datasets import load_sample_images

    random = np.random.default_rng(0)
    halves = [
        image[: len(image) // 2 * 2].reshape(len(image) // 2, 2, -1, 2, 3).mean((1, 3))
        for image in load_sample_images().images
    ]
    patches = []
    for index in range(count):
        image = halves[index % 2]
        top, left = (random.integers(length - side + 1) for length in image.shape[:2])
        patches.append(image[top : top + side, left : left + side])
    return np.rint(patches).astype(np.uint8)


def factors(latents: int, count: int, noise: float = 0.02) -> Images:
    """Samples of a linear Gaussian model, whose optimal VAE is known: (count, 16, 16, 1).

    Orthogonal cosine patterns times N(0, 1), plus pixel noise. A pattern has a root mean square of 0.02 a pixel, as
    the noise has: an eigenvalue of 0.1 against 0.0004.
    """
    random = np.random.default_rng(1)
    y, x = np.mgrid[0:16, 0:16] / 16
    waves = sorted(((a * a + b * b, a, b) for a in range(8) for b in range(8) if a + b), key=lambda w: w[0])
    patterns = np.stack([np.cos(np.pi * a * (y + 1 / 32)) * np.cos(np.pi * b * (x + 1 / 32)) for _, a, b in waves])
    patterns = patterns[:latents] / np.sqrt((patterns[:latents] ** 2).mean((1, 2), keepdims=True))
    values = 0.5 + 0.02 * np.tensordot(random.standard_normal((count, latents)), patterns, 1)
    values = values + noise * random.standard_normal(values.shape)
    return np.rint(255 * values.clip(0, 1)).astype(np.uint8)[..., None]


def blobs(count: int) -> Images:
    """One bright spot of random place, size and strength: (count, 24, 24, 1). Few factors, none of them linear."""
    random = np.random.default_rng(2)
    y, x = np.mgrid[0:24, 0:24][..., None] + 0.5
    cy, cx = random.uniform(5, 19, (2, count))
    width, strength = random.uniform(1.5, 3.5, count), random.uniform(0.4, 1.0, count)
    values = strength * np.exp(-((y - cy) ** 2 + (x - cx) ** 2) / (2 * width**2))
    return np.rint(255 * values.transpose(2, 0, 1)).astype(np.uint8)[..., None]


def same(count: int) -> Images:
    """One image, `count` times."""
    return np.repeat(photos(32, 1), count, axis=0)


def blank(count: int) -> Images:
    """Black images with one pixel at grey level 1: less than one level from the mean image."""
    images = np.zeros((count, 16, 16, 1), np.uint8)
    images[np.arange(count), np.arange(count) // 16 % 16, np.arange(count) % 16] = 1
    return images


def unscaled(count: int) -> NDArray[np.float32]:
    """Photos as floats in [0, 255], not scaled to [0, 1]."""
    return photos(32, count).astype(np.float32)


def faces(count: int) -> Images:
    """Frames of a video, like the Frey faces: one face that moves slowly, (count, 28, 20, 1).

    Pose, brows, mouth, gaze and lighting follow smooth random walks, so neighbouring frames are near-copies: their mean
    squared difference is a twentieth of that of any two frames.
    """
    from scipy.ndimage import gaussian_filter1d

    random = np.random.default_rng(4)
    walks = gaussian_filter1d(random.standard_normal((9, count)), 12, axis=1, mode="wrap")
    walks /= walks.std(axis=1, keepdims=True)
    yaw, pitch, roll, brows, opening, smile, gaze, light, lean = walks[..., None, None]
    y, x = (np.mgrid[0:28, 0:20] - np.array([13.5, 9.5])[:, None, None]) / 10
    u, v = x - 0.12 * lean, y - 0.1 * pitch
    u, v = u + 0.08 * roll * v, v - 0.08 * roll * u

    def ellipse(across: Floats, down: Floats, edge: float = 0.3) -> Floats:
        """1 within across² + down² = 1, 0 outside."""
        return 1 / (1 + np.exp(np.clip((across**2 + down**2 - 1) / edge, -50, 50)))

    head = ellipse(u / 0.82, v / 1.2, 0.12)
    a, b = u - 0.1 * yaw, v - 0.06 * pitch  # features turn further than the outline of the head
    values = 0.15 + head * (0.47 + 0.1 * light * a - 0.08 * a**2)
    values -= 0.45 * head / (1 + np.exp(np.clip((v + 0.85) / 0.1, -50, 50)))  # hair
    for side in (-0.36, 0.36):
        c = a - side
        values -= 0.35 * ellipse(c / 0.16, (b + 0.3) / 0.09)  # eye
        values -= 0.2 * ellipse((c - 0.05 * gaze) / 0.06, (b + 0.3) / 0.08)  # pupil
        values -= 0.3 * ellipse(c / 0.2, (b + 0.52 + 0.06 * brows) / 0.05)
    values += 0.12 * head * ellipse(a / 0.08, (b - 0.05) / 0.3, 0.4)  # nose
    curve = b - 0.55 + 0.12 * smile * (10 * a**2 - 0.3)
    values -= 0.4 * ellipse(a / (0.3 + 0.02 * smile), curve / (0.11 + 0.05 * np.tanh(opening)))  # mouth
    values += 0.02 * random.standard_normal(values.shape)
    return np.rint(255 * values.clip(0, 1)).astype(np.uint8)[..., None]


MAKERS = {
    "photos-32": lambda: photos(32, 1500),
    "photos-64": lambda: photos(64, 600),
    "photos-32-few": lambda: photos(32, 160),
    "factors-19": lambda: factors(19, 2000),
    "factors-5": lambda: factors(5, 3000),
    "blobs": lambda: blobs(1500),
    "faces": lambda: faces(1965),
    "same": lambda: same(300),
    "blank": lambda: blank(256),
    "unscaled": lambda: unscaled(300),
}

if __name__ == "__main__":
    main()
