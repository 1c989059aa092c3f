"""The update under torch.compile equals the eager one. Compiling takes minutes on a CPU."""

from typing import Any

import pytest
import torch
from benchmarks.pairs import agent_of, make_batch, tensors_of_agent

SMALL: dict[str, Any] = {
    "policy.hidden": [16, 16],
    "critics.hidden": [16, 16],
    "multiplier.kind": "fixed",
    "multiplier.value": 0.5,
}


@pytest.mark.slow
# Dynamo looks at .grad of what it traces.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")
@pytest.mark.timeout(1800)
@pytest.mark.usefixtures("no_shape_checks")
@pytest.mark.parametrize("preset", ["sac_alam", "corrected", "release_vesde"])
def test_compiled_update_equals_the_eager_one(preset: str) -> None:
    torch._dynamo.reset()
    eager, compiled = (agent_of(preset, **SMALL) for _ in range(2))
    update = torch.compile(compiled.update)
    for seed in range(3):
        batch = make_batch(32, seed=seed)
        # inductor draws its own numbers unless both generators stand outside of the graph
        compiled.generator.set_state(eager.generator.get_state())
        eager.update(batch)
        update(batch)
    expected, actual = tensors_of_agent(eager), tensors_of_agent(compiled)
    for name, value in expected.items():
        torch.testing.assert_close(actual[name], value, rtol=0.0, atol=2e-5, msg=name)
