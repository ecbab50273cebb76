"""Clusters of samples, by scikit-learn's MiniBatchKMeans, which is loaded when it is asked for."""

from __future__ import annotations

import warnings
from typing import Any, Final

import numpy as np

from otf_core.errors import CommandError, ErrorCode
from otf_core.runs.table import Floats, Ids, SampleTable

NO_CLUSTER: Final = -1
_STARTS: Final = 3  # the best of so many
_ROWS: Final = 65_536  # at a time


def cluster(table: SampleTable, feature: str, k: int, seed: int) -> Ids:
    """The cluster of each sample; numbered by mean loss, 0 the lowest.

    Features are brought to mean 0 and spread 1 each, so that none counts for its unit. Draws from
    no generator but its own.

    Args:
        feature: "loss", or a layer that the table has features of.

    Returns:
        -1 where the sample's loss or a feature of it is not finite.

    Raises:
        CommandError: ``unsupported``, scikit-learn is not there; ``bad_payload``, there are fewer
            samples than clusters.
    """
    assert table.losses is not None
    losses = table.losses
    rows = losses[:, None] if feature == "loss" else table.features[feature]
    good = np.isfinite(rows).all(axis=1) & np.isfinite(losses)
    if good.sum() < k:
        detail = f"{k} clusters of {int(good.sum())} samples were asked; allowed: as many or fewer."
        allowed = {"min": 1, "max": int(good.sum())}
        raise CommandError(ErrorCode.BAD_PAYLOAD, detail, field="k", allowed=allowed)
    found = _fitted(rows[good], k, seed)
    mean = np.full(k, np.inf)  # an empty cluster comes last
    for number in np.unique(found):
        mean[number] = losses[good][found == number].mean()
    rank = np.empty(k, dtype=np.int64)
    rank[np.argsort(mean, kind="stable")] = np.arange(k)
    clusters = np.full(len(table), NO_CLUSTER, dtype=np.int64)
    clusters[good] = rank[found]
    return clusters


def _fitted(rows: Floats, k: int, seed: int) -> Any:
    try:
        from sklearn.cluster import MiniBatchKMeans
        from sklearn.exceptions import ConvergenceWarning
    except ImportError as error:
        detail = (
            "Clusters were asked, but scikit-learn is not installed; allowed with "
            "pip install 'otf-lightning[samples]'."
        )
        raise CommandError(ErrorCode.UNSUPPORTED, detail) from error
    spread = rows.std(axis=0)
    scaled = (rows - rows.mean(axis=0)) / np.where(spread > 0, spread, 1.0)
    model = MiniBatchKMeans(k, random_state=seed, n_init=_STARTS)
    with warnings.catch_warnings():
        # Fewer different samples than clusters: some stay empty.
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(scaled)
    parts = [model.predict(scaled[i : i + _ROWS]) for i in range(0, len(scaled), _ROWS)]
    return np.concatenate(parts)
