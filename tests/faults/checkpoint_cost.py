"""Measure what saving costs with a million replay rows: the first time, and every 10 minutes.

In: rows, widths, and how many rows arrive between two saves. Out: a line per save: seconds that
training stands still, bytes written. The limit of interest: 2 s a save, 1 % of 10 minutes = 6 s.

    python tests/faults/checkpoint_cost.py --rows 1000000 --obs-dim 60 --new-rows 20000
"""

import argparse
import shutil
import tempfile
import time
from pathlib import Path

import torch

from alam.replay import ReplayBuffer
from algd.experiments.config import load_config, make_agent
from algd.training.checkpoint import CheckpointStore, claim_run_dir


def bytes_under(path: Path) -> int:
    """Return the bytes of all files."""
    return sum(p.stat().st_size for p in path.rglob("*") if p.is_file())


def main() -> None:
    """Fill a replay, save, add rows, save again."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--obs-dim", type=int, default=60)
    parser.add_argument("--action-dim", type=int, default=2)
    parser.add_argument("--new-rows", type=int, default=20_000)
    parser.add_argument("--saves", type=int, default=4)
    options = parser.parse_args()
    torch.set_num_threads(1)
    agent = make_agent(load_config(["algd"]), options.obs_dim, options.action_dim, 1000, "cpu")
    replay = ReplayBuffer(options.rows, options.obs_dim, options.action_dim)
    replay.append_rows(torch.rand(options.rows, sum(replay.widths)))
    root = Path(tempfile.mkdtemp(prefix="checkpoint_cost_"))
    try:
        claim_run_dir(root / "run")
        store = CheckpointStore(root / "run")
        for save in range(options.saves + 1):
            wall, processor = time.perf_counter(), time.process_time()
            store.save(replay.total_added, {"agent": agent.state_dict()}, replay)
            wall, processor = time.perf_counter() - wall, time.process_time() - processor
            new = options.rows if save == 0 else options.new_rows
            print(
                f"save {save}: {wall:.2f} s ({processor:.2f} s of processor), {new} new rows, "
                f"{bytes_under(root / 'run') / 2**20:.0f} MiB on the disk",
                flush=True,
            )
            replay.append_rows(torch.rand(options.new_rows, sum(replay.widths)))
    finally:
        shutil.rmtree(root)


if __name__ == "__main__":
    main()
