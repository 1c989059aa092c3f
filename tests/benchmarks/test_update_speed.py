"""The ratios of `make bench` stay above their floors."""

import pytest
from benchmarks.update_speed import FLOORS, measure, ratios, table


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.usefixtures("no_shape_checks")
def test_ratios_stay_above_their_floors() -> None:
    result = measure(rounds=7)
    found = ratios(result)
    short = {name: found[name] for name, floor in FLOORS.items() if found[name] < floor}
    assert not short, f"below {FLOORS}: {short}\n{table(result)}"
