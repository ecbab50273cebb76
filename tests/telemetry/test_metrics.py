"""The table of metrics."""

from __future__ import annotations

from otf_core.telemetry.metrics import BY_NAME, COSTLY, METRICS, cadences


def test_the_table_holds_the_fields_of_a_train_step_each_once() -> None:
    assert [metric.name for metric in METRICS] == [
        "step",
        "global_step",
        "epoch",
        "loss",
        "val_loss",
        "accuracy",
        "lr",
        "lrs",
        "grad_norm",
        "weight_norm",
        "activation_zero_frac",
        "throughput",
        "batches_per_s",
        "data_wait_frac",
        "mem_vram",
        "gpu_util",
        "ram_mb",
        "metrics",
    ]
    assert len(BY_NAME) == len(METRICS)


def test_cost_thread_and_cadence_of_a_row_agree() -> None:
    for metric in METRICS:
        sampled = metric.cost == "sampler"
        assert sampled == (metric.thread == "otf-sampler") == (metric.cadence == "sampler")
        assert (metric.cost == "costly") == (metric.cadence == "governor")
        assert metric.label
        assert metric.source


def test_the_costly_ones_are_the_norms_and_the_activations() -> None:
    assert COSTLY == ("grad_norm", "weight_norm", "activation_zero_frac")


def test_every_metric_but_those_of_validation_says_how_often_it_comes() -> None:
    governed = {"grad_norm": {"every": 8, "unit": "step", "cost_us": 1.0, "share_pct": 0.5}}
    found = cadences(governed, sampler_interval_s=2.0)
    assert set(found) == set(BY_NAME) - {"val_loss"}
    assert found["grad_norm"] == governed["grad_norm"]
    assert found["weight_norm"] == {"every": 1, "unit": "step"}
    assert found["loss"] == {"every": 1, "unit": "step"}
    assert found["mem_vram"] == {"every": 2.0, "unit": "s"}
