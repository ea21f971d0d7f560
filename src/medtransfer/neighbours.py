"""Images that a network takes for nearly the same."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from medtransfer.data.duplicates import Pair
from medtransfer.extraction import Extraction
from medtransfer.features import EMBEDDING

BLOCK = 1024  # embeddings that are compared with all others at once
NEAREST = 5  # of each image


def close_pairs(extraction: Extraction, similarity: float) -> tuple[Pair, ...]:
    """Return pairs of images whose embeddings point the same way.

    The mean embedding is taken off first: of most networks it is the larger part of each. All pairs
    are compared, so time grows with the square of the number of images.

    Args:
        extraction: A backbone in front of a dataset.
        similarity: Cosine from which a pair counts, in (0, 1].

    Returns:
        At most `NEAREST` pairs of each image, sorted.
    """
    data = extraction.data
    embeddings = np.zeros((len(data.decoded.records), extraction.backbone.embedding_size), "f4")
    for split in ("train", "val", "test"):
        indices: NDArray[np.int64] = getattr(data.division, split)
        features = extraction.features(split)
        values = features.read(indices, np.zeros_like(indices))[EMBEDDING].numpy()
        embeddings[indices] = values
    divided = np.sort(np.concatenate([data.division.train, data.division.val, data.division.test]))
    vectors = embeddings[divided] - embeddings[divided].mean(axis=0)
    vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    found = []
    for start in range(0, len(vectors), BLOCK):
        cosines = vectors[start : start + BLOCK] @ vectors.T
        rows = np.arange(len(cosines))
        cosines[rows, start + rows] = -1  # itself
        nearest = np.argpartition(-cosines, min(NEAREST, len(vectors) - 1) - 1)[:, :NEAREST]
        for row, columns in enumerate(nearest):
            for column in columns[cosines[row, columns] >= similarity].tolist():
                one, other = int(divided[start + row]), int(divided[column])
                cosine = round(float(cosines[row, column]), 4)
                found.append(Pair(min(one, other), max(one, other), "near", cosine))
    return tuple(sorted(set(found)))
