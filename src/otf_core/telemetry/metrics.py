"""The table of what a ``trainStep`` carries; no torch here. A new metric is a row.

Everything a screen needs to show a metric and to say how often it comes is in its row; nothing else
has to be found first.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final, Literal

Cost = Literal["free", "costly", "sampler"]
Cadence = Literal["step", "validation", "governor", "sampler"]


@dataclass(frozen=True, slots=True)
class Metric:
    """One field of ``trainStep``.

    ``cost``: ``free`` is read as it lies there, ``costly`` is computed and so thinned by the
    governor, ``sampler`` is read beside the training. ``cadence``: when a new value comes: each
    step, after each validation, every n steps as the governor decides, every interval of the
    sampler.
    """

    name: str
    unit: str  # "" for a pure number
    label: str
    source: str
    thread: Literal["training", "otf-sampler"]
    cost: Cost
    cadence: Cadence


_LOGGED: Final = "what the module logs"

METRICS: Final[tuple[Metric, ...]] = (
    Metric("step", "", "Step", "the trainer", "training", "free", "step"),
    Metric("global_step", "", "Global step", "the trainer", "training", "free", "step"),
    Metric("epoch", "", "Epoch", "the trainer", "training", "free", "step"),
    Metric("loss", "", "Loss", f"{_LOGGED}, or the returned loss", "training", "free", "step"),
    Metric("val_loss", "", "Validation loss", _LOGGED, "training", "free", "validation"),
    Metric("accuracy", "", "Accuracy", _LOGGED, "training", "free", "step"),
    Metric("lr", "", "Learning rate", "first parameter group", "training", "free", "step"),
    Metric("lrs", "", "Learning rates", "every parameter group", "training", "free", "step"),
    Metric(
        "grad_norm", "", "Gradient norm", "L2 over all gradients", "training", "costly", "governor"
    ),
    Metric(
        "weight_norm", "", "Weight norm", "L2 over all parameters", "training", "costly", "governor"
    ),
    Metric(
        "activation_zero_frac",
        "",
        "Zero activations",
        "outputs of ReLU-like modules that are exactly 0, as a fraction",
        "training",
        "costly",
        "governor",
    ),
    Metric(
        "throughput",
        "samples/s",
        "Throughput",
        "batch size and step time",
        "training",
        "free",
        "step",
    ),
    Metric("batches_per_s", "1/s", "Batches per second", "step time", "training", "free", "step"),
    Metric(
        "data_wait_frac",
        "",
        "Waiting for data",
        "share of the step spent fetching its batch",
        "training",
        "free",
        "step",
    ),
    Metric(
        "mem_vram",
        "MiB",
        "GPU memory",
        "NVML: in use on the device, by all processes",
        "otf-sampler",
        "sampler",
        "sampler",
    ),
    Metric(
        "gpu_util",
        "%",
        "GPU utilisation",
        "NVML: share of time with a kernel running",
        "otf-sampler",
        "sampler",
        "sampler",
    ),
    # The process alone: walking its children (loader workers) costs a scan of /proc each time, and
    # pages shared with them would count once for each.
    Metric(
        "ram_mb",
        "MiB",
        "Memory",
        "psutil: RSS of this process, without loader workers",
        "otf-sampler",
        "sampler",
        "sampler",
    ),
    Metric("metrics", "", "Logged", f"all of {_LOGGED}", "training", "free", "step"),
)

BY_NAME: Final[Mapping[str, Metric]] = MappingProxyType({m.name: m for m in METRICS})
COSTLY: Final[tuple[str, ...]] = tuple(m.name for m in METRICS if m.cost == "costly")


def cadences(
    governed: Mapping[str, Mapping[str, Any]], *, sampler_interval_s: float
) -> dict[str, dict[str, Any]]:
    """Metric -> ``{"every", "unit"}`` for every row but those tied to validations; any thread.

    ``governed`` is ``Governor.cadence()``; its entries are taken over whole. A costly metric that
    was not measured yet comes every step.
    """
    each_step = {"every": 1, "unit": "step"}
    sampled = {"every": sampler_interval_s, "unit": "s"}
    found: dict[str, dict[str, Any]] = {}
    for metric in METRICS:
        if metric.cadence == "sampler":
            found[metric.name] = dict(sampled)
        elif metric.cadence != "validation":
            found[metric.name] = dict(governed.get(metric.name, each_step))
    return found
