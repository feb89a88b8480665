"""Step metrics: their means, the first step that is not finite, and how fast the steps were."""

import numpy as np
import pytest

from ssd300_vgg16.runtime import flow
from ssd300_vgg16.training import step_metrics
from ssd300_vgg16.training.step import NotFinite
from ssd300_vgg16.training.step_metrics import Pace, StepMetrics, memory

NAMES = ("localization", "classification", "gradient_norm")
VALUES = np.random.default_rng(0).random((5, 3), dtype=np.float32)


def filled(values, kept=(), first=0):
    metrics = StepMetrics(NAMES, list(kept))
    for step, row in enumerate(values, start=first):
        metrics.add(step, flow.tensor(row))
    return metrics


def test_means_are_of_the_steps_since_the_last_time():
    metrics = filled(VALUES)
    means = metrics.take_means()
    assert tuple(means) == NAMES
    np.testing.assert_allclose(list(means.values()), VALUES.mean(axis=0, dtype=np.float64), rtol=1e-12)
    metrics.add(5, flow.tensor(VALUES[0]))
    assert list(metrics.take_means().values()) == VALUES[0].tolist()


@pytest.mark.parametrize("at", range(6))
def test_a_checkpoint_in_the_middle_changes_no_mean(at):
    before = filled(VALUES[:at])
    before.fetch()
    after = filled(VALUES[at:], kept=before.values, first=at)
    assert after.take_means() == filled(VALUES).take_means()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("column", range(3))
def test_the_first_step_that_is_not_finite_is_named(bad, column):
    values = VALUES.copy()
    values[2, column] = values[4, column] = bad
    metrics = filled(values, first=10)
    for _ in range(2):  # it is not forgotten
        with pytest.raises(NotFinite) as caught:
            metrics.fetch()
        assert caught.value.step == 12
        np.testing.assert_array_equal(caught.value.metrics, values[2])
        assert metrics.values == VALUES[:2].tolist()


def test_steps_that_are_not_finished_are_not_waited_for():
    metrics = filled(VALUES)
    metrics.fetch(unfinished=2)
    assert metrics.values == VALUES[:3].tolist()
    metrics.fetch()
    assert metrics.values == VALUES.tolist()


def test_the_pace_is_that_of_the_steps_since_the_last_time(monkeypatch):
    now = 100.0
    monkeypatch.setattr(step_metrics.time, "perf_counter", lambda: now)
    pace = Pace(batch_size=8)
    for _ in range(3):
        pace.add(0.5)
    now += 6
    assert pace.take() == {"images_per_second": 4.0, "data_wait": 0.25}
    pace.add(1.0)
    now += 2
    assert pace.take() == {"images_per_second": 4.0, "data_wait": 0.5}


def test_memory_is_in_megabytes():
    (used,) = memory("cpu").values()
    assert 50 < used < 1e6
