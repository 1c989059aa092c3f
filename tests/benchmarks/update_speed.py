"""How fast the updates, one action and the replay are: ratios to plain references, and floors.

Run as `make bench` or `algd bench`. Everything is timed in one process on one thread, alternating,
by CPU time; figures are medians. Writes a table and ``results/update_speed.json``.

Three floors: the products of the update at the rate of the fastest kernel on
hot caches (``floor``), at that of ``torch.mm`` which published code uses (``torch floor``), and the
products themselves replayed on memory of their own with nothing between them (``products``). The
last is what fewer calls could reach; between it and the first lie caches and small products.
"""

import argparse
import json
import random
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from benchmarks.pairs import ACTION, BATCH, EXACT, OBS, agent_of, make_batch, reference_of
from benchmarks.reference_release import ReferenceRelease
from benchmarks.timing import (
    alternating_medians,
    count_flops,
    gemm_run,
    processor_name,
    products_run,
    torch_gemm_run,
)

from alam.cpu_passes import USES_ONEDNN
from alam.replay import ReplayBuffer
from algd.diffusion.agent import ALGDAgent
from algd.experiments.config import load_config
from algd.training.allocation import keep_freed_memory

RESULTS = Path(__file__).parent / "results" / "update_speed.json"
# Cheaper modes, at the released observation: the shipped preset sized for a CPU, at its own batch
# and at the released one, and what each of its settings saves.
CHEAP = "cpu"
MODES: dict[str, dict[str, object]] = {
    "cpu": {},
    "cpu, batch 256": {"train.batch_size": BATCH},
    "cpu, policy.update_interval 3": {"policy.update_interval": 3},
    "cpu, policy.estimator denoising": {"policy.estimator": "denoising"},
    "cpu, both": {"policy.update_interval": 3, "policy.estimator": "denoising"},
}
REPLAY_ROWS = 1_000_000
# Each ratio must stay above its floor; set well below the measured one, which varies with the
# machine and with what else runs on it.
FLOORS = {
    "release_vesde": 1.6,
    "corrected": 1.6,
    "sac_alam": 1.5,
    "mode: cpu": 3.5,
    "mode: cpu, both": 4.5,
    "one_action": 4.0,
    "replay_list": 15.0,
}
if not USES_ONEDNN:  # torch's own products, as fast in the references
    FLOORS |= {
        "release_vesde": 1.1,
        "corrected": 1.1,
        "sac_alam": 1.1,
        "mode: cpu": 2.5,
        "mode: cpu, both": 3.8,
    }


def measure_updates(rounds: int) -> dict[str, Any]:
    """Time the exact updates, their references, the cheaper modes, and matrix products."""
    batch = make_batch()
    agents = {preset: agent_of(preset) for preset in EXACT}
    references = {preset: reference_of(preset, agent) for preset, agent in agents.items()}
    modes = {name: mode_run(settings) for name, settings in MODES.items()}
    fast, gemm_flops = gemm_run()
    plain, _ = torch_gemm_run()
    gemms: dict[str, Callable[[], object]] = {"gemm": fast, "torch_gemm": plain}
    times = alternating_medians(gemms, rounds=rounds, repeats=dict.fromkeys(gemms, 20))
    rate = gemm_flops / times["gemm"] / 1e6
    torch_rate = gemm_flops / times["torch_gemm"] / 1e6
    result: dict[str, Any] = {"gemm_gflops": rate, "torch_gemm_gflops": torch_rate}
    for preset, agent in agents.items():
        agent.update(batch)
        gflop = count_flops(lambda agent=agent: agent.update(batch)) / 1e9
        # A process that trains holds one agent: each takes turns with its own reference alone.
        runs: dict[str, Callable[[], object]] = {
            "this": lambda agent=agent: agent.update(batch),
            "reference": lambda learner=references[preset]: learner.update(batch),
        }
        times = alternating_medians(runs, rounds=rounds, repeats=dict.fromkeys(runs, 4))
        products = {"products": products_run(runs["this"])}
        times |= alternating_medians(products, rounds=rounds, repeats={"products": 2})
        floor = 1e3 * gflop / rate
        result[preset] = {
            "ms": times["this"],
            "reference_ms": times["reference"],
            "ratio": times["reference"] / times["this"],
            "gflop": gflop,
            "floor_ms": floor,
            "over_floor": times["this"] / floor,
            "over_torch_floor": times["this"] / (1e3 * gflop / torch_rate),
            "products_ms": times["products"],
            "over_products": times["this"] / times["products"],
        }
    plain_release = references["release_vesde"]
    flops = count_flops(lambda: plain_release.update(batch))
    result["release_vesde"]["reference_gflop"] = flops / 1e9
    # The policies of the modes move every second or third update.
    runs = modes | {"reference": lambda: plain_release.update(batch)}
    times = alternating_medians(runs, rounds=rounds, repeats=dict.fromkeys(modes, 6))
    reference = times["reference"]
    result["modes"] = {
        name: {"ms": times[name], "reference_ms": reference, "ratio": reference / times[name]}
        for name in MODES
    }
    return result


def mode_run(settings: dict[str, object]) -> Callable[[], object]:
    """Return one update of the cheap preset with some settings changed, at its batch size."""
    batch = make_batch(load_config([CHEAP], settings).train.batch_size)
    agent = agent_of(CHEAP, **settings)
    return lambda: agent.update(batch)


def measure_action(rounds: int) -> dict[str, float]:
    """Time one action of the released chain: as agents act, in this project's torch, as released.

    All three draw their own noise.
    """
    agent = agent_of("release_vesde")
    assert isinstance(agent, ALGDAgent)
    policy = agent.policy
    reference = reference_of("release_vesde", agent)
    assert isinstance(reference, ReferenceRelease)
    row = np.random.default_rng(0).standard_normal((1, OBS)).astype(np.float32)
    generator = torch.Generator().manual_seed(0)

    @torch.no_grad()
    def in_torch() -> np.ndarray:
        noise = torch.randn(policy.num_noises, 1, ACTION, generator=generator)
        return policy.sample(torch.from_numpy(row), noise).numpy()

    runs = {
        "act": lambda: agent.act(row, generator=generator),
        "torch": in_torch,
        "reference": lambda: reference.act(row[0]),
    }
    repeats = {"act": 200, "torch": 20, "reference": 20}
    times = alternating_medians(runs, rounds=rounds, repeats=repeats)
    return {
        "us": 1e3 * times["act"],
        "torch_us": 1e3 * times["torch"],
        "reference_us": 1e3 * times["reference"],
        "ratio": times["reference"] / times["act"],
    }


class ListBuffer:
    """A replay buffer as published code keeps it: a list of tuples, stacked batch by batch."""

    def __init__(self, rows: np.ndarray) -> None:
        edges = np.cumsum([OBS, ACTION, 1, 1, OBS])
        obs, action, reward, cost, next_obs, end = np.split(rows, edges, axis=1)
        scalars = [column[:, 0].tolist() for column in (reward, cost, end)]
        self.rows = list(
            zip(obs, action, scalars[0], scalars[1], next_obs, scalars[2], strict=True)
        )
        self.random = random.Random(0)

    def sample(self, size: int) -> list[torch.Tensor]:
        """Return a batch as tensors."""
        columns = map(np.stack, zip(*self.random.sample(self.rows, size), strict=True))
        return [torch.FloatTensor(column) for column in columns]


def measure_replay(rounds: int, rows: int = REPLAY_ROWS) -> dict[str, float]:
    """Time a batch of the packed replay, of a list, and of a TensorDict where it is installed."""
    replay = ReplayBuffer(rows, OBS, ACTION)
    replay.table.uniform_(generator=torch.Generator().manual_seed(0))
    replay.total_added = rows
    plain = ListBuffer(replay.table.numpy())
    generator = torch.Generator().manual_seed(1)
    runs: dict[str, Callable[[], object]] = {
        "packed": lambda: replay.sample(BATCH, generator),
        "list": lambda: plain.sample(BATCH),
    }
    repeats = {"packed": 20, "list": 4}
    if find_spec("tensordict"):
        TensorDict = import_module("tensordict").TensorDict  # noqa: N806
        columns = replay.unpack(replay.table)._asdict()
        table = TensorDict(
            {name: column.contiguous() for name, column in columns.items()}, batch_size=[rows]
        )
        runs["tensordict"] = lambda: table[torch.randint(rows, (BATCH,), generator=generator)]
        repeats["tensordict"] = 20
    times = alternating_medians(runs, rounds=rounds, repeats=repeats)
    result = {
        "rows": rows,
        "us": 1e3 * times["packed"],
        "list_us": 1e3 * times["list"],
        "ratio": times["list"] / times["packed"],
    }
    if "tensordict" in times:
        result["tensordict_us"] = 1e3 * times["tensordict"]
        result["tensordict_ratio"] = times["tensordict"] / times["packed"]
    return result


def measure(rounds: int) -> dict[str, Any]:
    """Return all figures."""
    torch.set_num_threads(1)
    keep_freed_memory()
    return {
        "machine": processor_name(),
        "torch": torch.__version__,
        "setting": {"obs": OBS, "action": ACTION, "batch": BATCH, "threads": 1, "rounds": rounds},
        **measure_updates(rounds),
        "one_action": measure_action(2 * rounds),
        "replay": measure_replay(2 * rounds),
    }


def ratios(result: dict[str, Any]) -> dict[str, float]:
    """Return every ratio to a reference, by name; ``FLOORS`` holds some of them."""
    found = {name: result[name]["ratio"] for name in (*EXACT, "one_action")}
    found |= {f"mode: {name}": mode["ratio"] for name, mode in result["modes"].items()}
    return found | {"replay_list": result["replay"]["ratio"]}


def table(result: dict[str, Any]) -> str:
    """Return the figures as a Markdown table."""
    lines = [
        f"one thread; products {result['gemm_gflops']:.0f} GFLOP/s, by torch.mm "
        f"{result['torch_gemm_gflops']:.0f}",
        "",
        "| update | ms | reference ms | ratio | GFLOP | floor ms | over floor "
        "| over torch.mm floor | its products alone ms | over those |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for preset in EXACT:
        row = result[preset]
        keys = ("ms", "reference_ms", "ratio", "gflop", "floor_ms", "over_floor")
        keys += ("over_torch_floor", "products_ms", "over_products")
        lines.append(f"| {preset} | " + " | ".join(f"{row[key]:.2f}" for key in keys) + " |")
    act, replay = result["one_action"], result["replay"]
    lines += [
        "",
        "| measure | this | reference | ratio |",
        "|---|---|---|---|",
        *(
            f"| update of {name} | {mode['ms']:.2f} ms | {mode['reference_ms']:.2f} ms "
            f"| {mode['ratio']:.2f} |"
            for name, mode in result["modes"].items()
        ),
        f"| one action, 5 levels | {act['us']:.0f} us | {act['reference_us']:.0f} us "
        f"| {act['ratio']:.1f} |",
        f"| replay batch of {replay['rows']} rows, list | {replay['us']:.0f} us "
        f"| {replay['list_us']:.0f} us | {replay['ratio']:.1f} |",
    ]
    if "tensordict_us" in replay:
        lines.append(
            f"| the same, TensorDict | {replay['us']:.0f} us | {replay['tensordict_us']:.0f} us "
            f"| {replay['tensordict_ratio']:.1f} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(prog="algd bench", description=__doc__)
    parser.add_argument("--rounds", type=int, default=15, help="turns of each run, default 15")
    parser.add_argument("--output", type=Path, default=RESULTS, help=f"default {RESULTS.name}")
    options = parser.parse_args()
    result = measure(options.rounds)
    print(table(result))
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
