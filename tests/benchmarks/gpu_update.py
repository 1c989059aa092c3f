"""Updates as CUDA graphs, against the eager ones on the same GPU.

Run on a machine with a GPU: `python tests/benchmarks/gpu_update.py` (--seeds sets how many are
updated in one graph; --compile adds torch.compile under the graphs of one seed and leaves several
out). Prints a table and writes ``results/gpu_update.json``: the captured updates of one seed, as
`train.cuda_graph` takes them, against the eager ones, and those of several seeds against those of
one; one action by the policy's copy on the host and by the device. Without a GPU it prints how many
kernels these updates launch and how much they write, which needs none.

Replay rows are drawn on the device; Adam counts its steps there (capturable); the update asks the
host for nothing, which the sync debug mode of torch enforces here and ``test_no_host_sync.py`` on a
CPU.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

if __name__ == "__main__":
    sys.path[:0] = [str(Path(__file__).parents[2]), str(Path(__file__).parents[1])]

import numpy as np
import torch
from benchmarks.pairs import ACTION, BATCH, OBS, Agent, agent_of, optimizers_of, update_alone
from torch.utils._python_dispatch import TorchDispatchMode

from alam.acting import KeptSampler
from alam.captured import CapturedUpdates
from alam.networks import EnsembleMLP
from alam.replay import ReplayBuffer
from alam.types import Batch
from algd.diffusion.joint import join

RESULTS = Path(__file__).parent / "results" / "gpu_update.json"
UPDATES = 10  # per environment step, as released
_WARM_UPS = 41  # steps, after which every kind of update is captured: the rarest is the 400th
_WATCHED = 10  # steps in which no host sync may happen; a lagged copy falls into them
PRESETS = ("release_vesde", "sac_alam", "algd", "corrected")
_ROWS = 100_000

_NO_KERNEL = ("empty", "detach", "_unsafe_view", "squeeze_", "_record_function")


class Launches(TorchDispatchMode):
    """Counts the calls that start a kernel on a GPU, and the bytes of what they return."""

    def __init__(self) -> None:
        super().__init__()
        self.kernels = 0
        self.written = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if not (func.is_view or func.overloadpacket.__name__.startswith(_NO_KERNEL)):
            self.kernels += 1
            outputs = result if isinstance(result, list | tuple) else [result]
            self.written += sum(x.nbytes for x in outputs if isinstance(x, torch.Tensor))
        return result


def launches(*agents: Agent) -> Launches:
    """Return what one update of these agents launches by the operations that a GPU runs."""
    with patch.object(EnsembleMLP, "written_out", return_value=False):
        steps = StepUpdates(*agents, updates=2, rows=1000)
        steps.run()  # the optimisers build their state
        batch = steps.sample()
        with Launches() as counted:
            steps.update(batch)
    return counted


class StepUpdates:
    """The updates of one environment step, on a replay that lives on the device.

    Args:
        agents: one, or those of several seeds.
        updates: per environment step.
        rows: of each seed's replay.
        captured: by CUDA graphs.
        together: update several agents together; False updates each alone, on the same rows.
    """

    def __init__(
        self,
        *agents: Agent,
        updates: int = UPDATES,
        rows: int = _ROWS,
        captured: bool = False,
        together: bool = True,
    ) -> None:
        self.agents = agents
        self.updates = updates
        device = agents[0].device
        self.sampling = [torch.Generator(device=device).manual_seed(1) for _ in agents]
        self.replays = [ReplayBuffer(rows, OBS, ACTION, device=device) for _ in agents]
        for replay in self.replays:
            replay.table.normal_(generator=self.sampling[0])
            replay.total_added = rows
        self.update: Callable[[Batch], object] = partial(update_alone, agents)
        if len(agents) == 1 and captured:
            self.update = partial(update_alone, [CapturedUpdates(agents[0])])
        elif together and len(agents) > 1:
            joint = join(agents)
            self.update = CapturedUpdates(joint).update if captured else joint.update

    def run(self) -> None:
        """Take all updates of the step."""
        for _ in range(self.updates):
            self.update(self.sample())

    def sample(self) -> Batch:
        """Draw the rows of every agent, as ``algd.training.lockstep`` does."""
        drawn = [
            one.sample(BATCH, stream)
            for one, stream in zip(self.replays, self.sampling, strict=True)
        ]
        return Batch(*map(torch.stack, zip(*drawn, strict=True)))


def milliseconds(call: Callable[[], None], *, calls: int) -> float:
    """Return the mean time of one call on the device."""
    start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    start.record()
    for _ in range(calls):
        call()
    stop.record()
    torch.cuda.synchronize()
    return start.elapsed_time(stop) / calls


def count_syncs(call: Callable[[], None]) -> None:
    """Run a call in torch's debug mode, where a synchronising operation raises."""
    call()
    torch.cuda.set_sync_debug_mode("error")
    try:
        call()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def _run_often(steps: StepUpdates) -> None:
    for _ in range(_WATCHED):
        steps.run()


def action_microseconds(agent: Agent, *, rounds: int, calls: int = 100) -> dict[str, float]:
    """Return the median time of one action, updates apart, by each of the two ways."""
    obs, generator = np.ones((1, OBS), np.float32), torch.Generator()
    times: dict[str, list[float]] = {"host": [], "device": []}
    for _ in range(rounds + 1):
        for name, taken in times.items():
            sampler = KeptSampler.get if name == "host" else lambda _: None
            with patch.object(KeptSampler, "get", sampler):
                agent.act(obs, generator=generator)
                torch.cuda.synchronize()
                start = time.perf_counter()
                for _ in range(calls):
                    agent.act(obs, generator=generator)
                taken.append(1e6 * (time.perf_counter() - start) / calls)
    return {f"act_{name}_us": float(np.median(taken[1:])) for name, taken in times.items()}


def measure(preset: str, *, compiled: bool, rounds: int, seeds: int) -> dict[str, Any]:
    """Return the medians of alternating runs of the eager loop and the graphs.

    Several seeds are compared with one where neither is compiled.
    """
    agents = [agent_of(preset, device="cuda", seed=seed) for seed in range(seeds)]
    eager, captured = StepUpdates(agent_of(preset, device="cuda")), agent_of(preset, device="cuda")
    if compiled:
        for optimizer in optimizers_of(captured):  # torch cannot trace Adam with rates in tensors
            optimizer.step = torch.compiler.disable(optimizer.step)
        captured.take_update = torch.compile(captured.take_update)
    steps = {"eager": eager, "graph": StepUpdates(captured, captured=True)}
    if not compiled:
        steps["seeds"] = StepUpdates(*agents, captured=True)
    for step in steps.values():
        for _ in range(_WARM_UPS):
            step.run()
        count_syncs(partial(_run_often, step))
    calls = {name: (step.run, 2 if name == "eager" else 20) for name, step in steps.items()}
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, (call, repeats) in calls.items():
            times[name].append(milliseconds(call, calls=repeats))
    medians = {name: sorted(values)[len(values) // 2] for name, values in times.items()}
    row: dict[str, Any] = {
        "eager_ms_per_update": medians["eager"] / UPDATES,
        "graph_ms_per_update": medians["graph"] / UPDATES,
        "ratio": medians["eager"] / medians["graph"],
        "updates_per_second": 1e3 * UPDATES / medians["graph"],
        "minutes_for_1e6_updates": 1e6 * medians["graph"] / UPDATES / 6e4,
        "host_syncs": 0,
        "compiled": compiled,
        **action_microseconds(agents[0], rounds=rounds),
    }
    if not compiled:
        row["seeds"] = seeds
        row["seeds_ms_per_update"] = medians["seeds"] / UPDATES
        row["seeds_over_one"] = medians["seeds"] / medians["graph"]
    return row


def main() -> None:
    """Measure all presets."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--compile", action="store_true", help="torch.compile under the graph")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seeds", type=int, default=8, help="updated in one graph; at least 2")
    parser.add_argument("--out", type=Path, default=RESULTS, help="of the JSON")
    options = parser.parse_args()
    if options.seeds < 2:
        parser.error(f"--seeds must be >= 2, got {options.seeds}")
    if not torch.cuda.is_available():
        print("no CUDA device here: kernels and MB written by one update, counted on the CPU")
        for preset in PRESETS:
            one = launches(agent_of(preset))
            several = launches(*(agent_of(preset, seed=seed) for seed in range(options.seeds)))
            for seeds, counted in ((1, one), (options.seeds, several)):
                print(
                    f"{preset:14} seeds {seeds}: {counted.kernels:5} {counted.written / 1e6:8.1f}"
                )
        return
    torch.set_float32_matmul_precision("highest")
    result: dict[str, Any] = {"gpu": torch.cuda.get_device_name(), "torch": torch.__version__}
    for preset in PRESETS:
        row = measure(preset, compiled=options.compile, rounds=options.rounds, seeds=options.seeds)
        result[preset] = row
        print(preset, {k: round(v, 3) for k, v in row.items() if isinstance(v, float)}, flush=True)
        options.out.parent.mkdir(parents=True, exist_ok=True)  # after each: time may run out
        options.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
