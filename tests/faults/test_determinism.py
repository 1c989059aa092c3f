"""What observes a run, or computes it in another order, does not change the training stream."""

from pathlib import Path
from typing import Any

import pytest
import torch
from faults.tiny_runs import run, training_stream
from saved_runs import same_bits

OBSERVERS: dict[str, dict[str, Any]] = {
    "evaluation_frequency": {"evaluation__interval": 17, "evaluation__episodes": 2},
    "tracking_on": {"tracking__wandb": "offline", "tracking__tensorboard": True},
    "progress_bar_on": {"tracking__progress": True},
    "log_and_checkpoint_interval": {"train__log_interval": 7, "train__checkpoint_interval": 11},
    "video": {"evaluation__video": True, "evaluation__video_steps": 5},
    "save_errors_survived": {"train__on_save_error": "continue"},
}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return stream(run(tmp_path_factory.mktemp("undisturbed") / "run"))


def stream(run_dir: Path) -> dict[str, Any]:
    """Return the training stream without the counter of rows, which follows the log interval."""
    found = training_stream(run_dir)
    del found["counters"]["last_recorded"]
    return found


@pytest.mark.parametrize("changes", OBSERVERS.values(), ids=OBSERVERS)
def test_training_does_not_depend_on(
    changes: dict[str, Any], undisturbed: dict[str, Any], tmp_path: Path, no_wandb_login: None
) -> None:
    assert same_bits(stream(run(tmp_path / "run", **changes)), undisturbed)


def test_training_takes_its_threads_from_the_configuration_alone(
    tmp_path: Path, undisturbed: dict[str, Any]
) -> None:
    """``train.num_threads`` itself changes the order of large sums, hence the last bits."""
    torch.set_num_threads(2)
    assert same_bits(stream(run(tmp_path / "run", train__num_threads=1)), undisturbed)
    assert torch.get_num_threads() == 1


def test_another_seed_gives_another_stream(tmp_path: Path, undisturbed: dict[str, Any]) -> None:
    assert not same_bits(stream(run(tmp_path / "run", seed=1)), undisturbed)
