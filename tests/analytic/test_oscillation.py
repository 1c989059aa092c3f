"""Oscillation of a run as its metrics.csv tells it."""

import math
from pathlib import Path

import pytest

from algd.analysis.oscillation import metric_series, run_oscillation
from algd.training.csv_table import read_rows


def rows(multipliers: list[float], *, step: int = 100) -> list[dict[str, str]]:
    return [
        {
            "train/num_updates": str(float(k * step)),
            "train/multiplier": str(value),
            "train/cost": "" if k % 2 else str(10.0 * value),
        }
        for k, value in enumerate(multipliers)
    ]


def test_a_square_wave_has_its_height_times_its_flips() -> None:
    # 0, 1, 0, 1 ... over 100 updates each: 10 flips of height 1 in 1,000 updates.
    assert run_oscillation(rows([0.0, 1.0] * 20)).multiplier == pytest.approx(10.0)


def test_the_way_from_the_start_does_not_count() -> None:
    settled = rows([float(k) for k in range(10)] + [10.0] * 11)
    assert run_oscillation(settled).multiplier == 0.0
    assert run_oscillation(settled, after_share=0.0).multiplier == pytest.approx(5.0, rel=0.06)


def test_rows_without_a_finished_episode_are_left_out() -> None:
    # Every second row has a cost: 0, 10 * 2, ... a ramp of 20 per 200 updates.
    result = run_oscillation(rows([float(k) for k in range(21)]))
    assert result.cost == pytest.approx(100.0)


def test_a_run_without_rows_has_no_oscillation(tmp_path: Path) -> None:
    result = run_oscillation(read_rows(tmp_path / "metrics.csv"))
    assert math.isnan(result.multiplier)
    assert math.isnan(result.cost)


def test_series_are_read_back_from_the_file(tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").write_text(
        "env_step,train/num_updates,train/cost\n1,1.0,\n2,2.0,0.25\n3,3.0,0."  # cut by a kill
    )
    updates, costs = metric_series(read_rows(tmp_path / "metrics.csv"), "train/cost")
    assert updates.tolist() == [2.0]
    assert costs.tolist() == [0.25]


def test_an_impossible_share_is_named() -> None:
    with pytest.raises(ValueError, match="after_share"):
        run_oscillation([], after_share=1.0)
