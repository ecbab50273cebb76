"""Samples whose label is doubtful: confident learning.

Northcutt, Jiang and Chuang, Confident Learning: Estimating Uncertainty in Dataset Labels, JAIR 70
(2021), section 3.1: a sample of label i is counted as one of class j if its probability for j is at
least t_j, the mean probability for j of the samples that have label j; where several classes are,
the most probable of them counts. Those with j other than i are suspects. They are ranked by
their normalized margin (section 3.2 there): p(label) - max of p(other).

Of the other classes only the most probable is looked at, so that no matrix of all samples and
classes has to be kept. A suspect is missed where the most probable other class is below its
threshold, and a less probable one is above its own.

The probabilities should be of a model that was not trained on the labels (there: out of sample).
Those of a training set are more certain of its labels than they should be, so that suspects are
missed.
"""

from __future__ import annotations

import numpy as np

from otf_core.runs.table import NO_CLASS, Floats, Ids, SampleTable


def margins(table: SampleTable) -> Floats:
    """Probability of the label less that of the most probable other class, -1 to 1."""
    assert table.confidence is not None
    assert table.rival_confidence is not None
    return table.confidence - table.rival_confidence


def suspects(table: SampleTable) -> Ids:
    """Ids of the suspects, the most doubtful first; training thread."""
    labels, rivals, own = table.labels, table.rivals, table.confidence
    other = table.rival_confidence
    assert labels is not None
    assert rivals is not None
    assert own is not None
    assert other is not None
    known = (labels != NO_CLASS) & np.isfinite(own) & np.isfinite(other)
    if not known.any():
        return table.ids[:0]
    classes = int(max(labels[known].max(), rivals[known].max())) + 1
    count = np.bincount(labels[known], minlength=classes)
    total = np.bincount(labels[known], weights=own[known], minlength=classes)
    # A class that no sample has is above no threshold.
    threshold = np.where(count > 0, total / np.maximum(count, 1), np.inf)
    is_other = known.copy()
    is_other[known] = other[known] >= threshold[rivals[known]]
    is_own = known.copy()
    is_own[known] = (own[known] >= threshold[labels[known]]) & (own[known] >= other[known])
    found = np.flatnonzero(is_other & ~is_own)
    order = np.argsort(margins(table)[found], kind="stable")
    return table.ids[found[order]]
