"""What a table of losses says, as plain values for reports and the page; any thread.

Counts are of all samples; means, quantiles and the histogram are of finite losses.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from otf_core.runs.table import NO_CLASS, Floats, SampleTable, finite_or_none

SHARES: Final = (0.0, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 1.0)
BINS: Final = 50
WORST: Final = 100


def figures_of(table: SampleTable, *, bins: int = BINS, worst_k: int = WORST) -> dict[str, Any]:
    """All of them: count, not_finite, mean, std, quantiles, histogram, worst, classes, accuracy.

    ``accuracy`` and ``classes`` are None where no labels are known; means are None where there
    is no finite loss.
    """
    losses = _finite(table)
    there = len(losses) > 0
    return {
        "count": len(table),
        "not_finite": len(table) - len(losses),
        "mean": float(losses.mean()) if there else None,
        "std": float(losses.std()) if there else None,
        "quantiles": quantiles(table),
        "histogram": histogram(table, bins),
        "worst": worst(table, worst_k),
        "classes": per_class(table),
        "accuracy": accuracy(table),
    }


def quantiles(table: SampleTable, shares: tuple[float, ...] = SHARES) -> list[dict[str, float]]:
    """[{share, loss}]; empty where there is no finite loss."""
    losses = _finite(table)
    if len(losses) == 0:
        return []
    found = np.quantile(losses, shares)
    return [{"share": s, "loss": float(q)} for s, q in zip(shares, found, strict=True)]


def histogram(table: SampleTable, bins: int = BINS) -> dict[str, list[float]]:
    """{edges, counts}, with one edge more; both empty where there is no finite loss."""
    losses = _finite(table)
    if len(losses) == 0:
        return {"edges": [], "counts": []}
    counts, edges = np.histogram(losses, bins)
    return {"edges": edges.tolist(), "counts": counts.tolist()}


def worst(table: SampleTable, k: int = WORST) -> list[dict[str, Any]]:
    """[{id, loss, label, prediction, sure}], the worst first; what is no number before all."""
    assert table.losses is not None
    k = min(k, len(table))
    score = np.where(np.isnan(table.losses), np.inf, table.losses)
    found = np.argpartition(-score, k - 1)[:k] if k else np.array([], dtype=np.int64)
    order = sorted(
        found.tolist(),
        key=lambda row: (not np.isnan(table.losses[row]), -score[row], table.ids[row]),  # type: ignore[index]
    )
    return [
        {
            "id": int(table.ids[row]),
            "loss": finite_or_none(float(table.losses[row])),
            "label": _class(table.labels, row),
            "prediction": _class(table.predictions, row),
            "sure": _sure(table, row),
        }
        for row in order
    ]


def per_class(table: SampleTable) -> list[dict[str, Any]] | None:
    """[{label, count, mean, accuracy}] by label; None where no labels are known."""
    labels, losses = table.labels, table.losses
    if labels is None:
        return None
    assert losses is not None
    rows = []
    for label in np.unique(labels[labels != NO_CLASS]).tolist():
        members = labels == label
        good = losses[members & np.isfinite(losses)]
        right = None
        if table.predictions is not None:
            right = float((table.predictions[members] == label).mean())
        mean = float(good.mean()) if len(good) else None
        row = {"label": label, "count": int(members.sum()), "mean": mean, "accuracy": right}
        rows.append(row)
    return rows


def accuracy(table: SampleTable) -> float | None:
    """Of the samples that have a label; None where there are none."""
    if table.labels is None or table.predictions is None:
        return None
    known = table.labels != NO_CLASS
    return float((table.labels == table.predictions)[known].mean()) if known.any() else None


def _finite(table: SampleTable) -> Floats:
    assert table.losses is not None
    return table.losses[np.isfinite(table.losses)]


def _sure(table: SampleTable, row: int) -> float | None:
    """The probability of what is predicted, 0 to 1."""
    if table.predictions is None or table.labels is None or table.labels[row] == NO_CLASS:
        return None
    right = table.predictions[row] == table.labels[row]
    column = table.confidence if right else table.rival_confidence
    return None if column is None else finite_or_none(float(column[row]))


def _class(column: Any, row: int) -> int | None:
    return None if column is None or column[row] == NO_CLASS else int(column[row])
