"""Metrics of segmentation against scikit-learn and MONAI, on random maps."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter
from sklearn.metrics import f1_score, jaccard_score

from medtransfer.tasks.mask_metrics import overlap_metrics, surface_metrics

CLASSES = 2


def draw(seed: int, size: int) -> torch.Tensor:
    """Return smooth maps (3, size, size) in which each class takes about a third."""
    noise = np.random.default_rng(seed).normal(size=(3, size, size))
    smooth = np.stack([gaussian_filter(each, 2) for each in noise])
    return torch.from_numpy(np.digitize(smooth, np.quantile(smooth, [1 / 3, 2 / 3])))


def one_hot(labels: torch.Tensor) -> torch.Tensor:
    return torch.stack([labels == k for k in range(1, CLASSES + 1)], 1).float()


pairs = st.tuples(st.integers(0, 10**6), st.integers(0, 10**6), st.integers(12, 40))


@given(pairs)
@settings(max_examples=25)
def test_overlap_is_scikit_learns(pair):
    ours, theirs = draw(pair[0], pair[2]), draw(pair[1], pair[2])
    found = overlap_metrics(ours, theirs, CLASSES)
    for n in range(len(ours)):
        flat = theirs[n].reshape(-1).numpy(), ours[n].reshape(-1).numpy()
        for k in range(1, CLASSES + 1):
            if (flat[0] != k).all() and (flat[1] != k).all():
                continue  # no say here, and a zero there
            alone = {"labels": [k], "average": "macro"}
            assert float(found["dice"][n, k - 1]) == pytest.approx(f1_score(*flat, **alone))
            assert float(found["jaccard"][n, k - 1]) == pytest.approx(jaccard_score(*flat, **alone))


@given(pairs, st.sampled_from([0.5, 1.0, 2.0, 3.5]), st.sampled_from([(1.0, 1.0), (0.5, 2.0)]))
@settings(max_examples=8)
def test_surfaces_are_monais(pair, tolerance, spacing):
    from monai.metrics.hausdorff_distance import compute_hausdorff_distance
    from monai.metrics.surface_dice import compute_surface_dice

    ours, theirs = draw(pair[0], pair[2]), draw(pair[1], pair[2])
    both = one_hot(ours).flatten(2).any(2) & one_hot(theirs).flatten(2).any(2)
    given_ = {"include_background": True, "spacing": spacing}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about classes that are absent, which are left out here
        hd95 = compute_hausdorff_distance(one_hot(ours), one_hot(theirs), percentile=95, **given_)
        nsd = compute_surface_dice(
            one_hot(ours), one_hot(theirs), class_thresholds=[tolerance] * CLASSES, **given_
        )
    found = surface_metrics(ours, theirs, CLASSES, tolerance=tolerance, spacing=spacing)
    torch.testing.assert_close(
        found["hd95"][both].double(), hd95[both].double(), rtol=1e-4, atol=1e-4
    )
    torch.testing.assert_close(
        found["nsd"][both].double(), nsd[both].double(), rtol=1e-5, atol=1e-5
    )
