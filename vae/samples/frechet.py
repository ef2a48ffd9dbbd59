"""The Fréchet distance between the Gaussians of two sets of features."""

import numpy as np
from numpy.typing import NDArray

Points = NDArray[np.float64]


def frechet(x: Points, y: Points) -> tuple[float, Points, Points]:
    """‖m_x − m_y‖² + tr(Σ_x + Σ_y − 2(Σ_x Σ_y)^½) (Dowson & Landau 1982; FID of Heusel 2017), and its influence values.

    With X the centred points over √(N − 1), Σ_x = XᵀX, and tr (Σ_x Σ_y)^½ is the sum of the singular values of XYᵀ.
    So no matrix is inverted and no root of one taken, and where N ≤ F, the covariances being singular, nothing has to
    be added to them. The distance is biased upwards by about F²/N in units of a variance, so it compares only with
    that of other sets of the same sizes.

    x: (N, F), y: (M, F), finite, at least 2 points each.
    Returns the distance, 0 or more, and by how much each point of x (N,) and of y (M,) moves it: if w are the points'
    shares (1/N each), (N,) is its derivative to w. Each has mean 0.
    """
    difference = x.mean(0) - y.mean(0)
    (q_x, r_x), (q_y, r_y) = (np.linalg.qr((a - a.mean(0)) / np.sqrt(len(a) - 1)) for a in (x, y))
    left, singular, right = np.linalg.svd(r_x @ r_y.T, full_matrices=False)
    distance = (difference**2).sum() + (r_x**2).sum() + (r_y**2).sum() - 2 * singular.sum()

    def influence(points: Points, q: Points, r: Points, vectors: Points, towards: Points) -> Points:
        # ((q r)²).sum(1) is each point's share of the trace, and (q v_k)² that of the singular value k
        shares = ((q @ r) ** 2).sum(1) - (q @ vectors) ** 2 @ singular
        return 2 * (points - points.mean(0)) @ towards + len(points) * (shares - shares.mean())

    of_x = influence(x, q_x, r_x, left, difference)
    return max(float(distance), 0.0), of_x, influence(y, q_y, r_y, right.T, -difference)
