"""Compares what two peers computed, as arrays that came over the pipe."""

import numpy as np


def max_abs_err(results: list[list[np.ndarray]], reference: list[list[np.ndarray]]) -> float:
    """Largest absolute difference; infinite where the shapes differ or only one of the two is not finite."""
    worst = 0.0
    for outputs, expected in zip(results, reference, strict=True):
        if [a.shape for a in outputs] != [b.shape for b in expected]:
            return float("inf")
        for a, b in zip(outputs, expected, strict=True):
            a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
            different = ~((a == b) | (np.isnan(a) & np.isnan(b)))
            if different.any():
                gap = float(np.abs(a[different] - b[different]).max())
                worst = max(worst, gap if np.isfinite(gap) else float("inf"))
    return worst
