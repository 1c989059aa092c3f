"""Whether a critic's network can see cost in episodes it was not fitted to, by its inputs.

    OMP_NUM_THREADS=1 python -m tests.benchmarks.observation_tails RUN_DIR

In: the replay of a run with one environment, of episodes of one length. Out: a line per kind of
input and split: area under the ROC curve of the predicted present cost (of the observation that the
step led to), on episodes left out and on those fitted.

A third of the episodes is left out; the network has the shape of the run's cost critic and takes
2,000 steps of Adam on the squared error. The same episodes, batches and initial weights for both.
"""

import argparse
from pathlib import Path

import numpy as np
import torch

import algd
from alam.networks import MLP, make_adam
from alam.replay import ReplayBuffer
from algd.analysis.calibration import auroc
from algd.training.checkpoint import CheckpointStore
from algd.training.normalization import RunningNormalizer, TailNormalizer

_STEPS, _ROWS, _RATE = 2_000, 128, 1e-3


def read_replay(run_dir: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return observations (N, O), their costs (N,) and the episode of each (N,)."""
    policy = algd.load(run_dir)
    store = CheckpointStore(run_dir)
    path = store.latest()
    assert path is not None
    train = policy.config.train
    replay = ReplayBuffer(
        min(train.buffer_size, train.total_steps), policy.obs_dim, policy.agent.action_dim
    )
    store.restore_replay(path, replay)
    length = policy.task["episode_length"]
    first = replay.total_added - len(replay)
    numbers = np.arange(first, replay.total_added)
    columns = replay.table.split(replay.widths, dim=1)
    slots = numbers % replay.capacity
    return columns[4].numpy()[slots], columns[3].numpy()[slots, 0], numbers // length


def fit(features: torch.Tensor, cost: torch.Tensor, rows: np.ndarray, seed: int) -> torch.Tensor:
    """Regress the cost on the features of some rows; return what is predicted for all."""
    generator = torch.Generator().manual_seed(seed)
    shape = ((features.shape[1],), (128, 128), 1)
    network = MLP(*shape, activation="silu", generator=generator)
    optimizer = make_adam(network.parameters(), learning_rate=_RATE)
    known = torch.from_numpy(rows)
    for _ in range(_STEPS):
        batch = known[torch.randint(len(known), (_ROWS,), generator=generator)]
        network.regress(features[batch], target=cost[batch])
        optimizer.step()
    with torch.no_grad():
        return network(features).squeeze(-1)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("--splits", type=int, default=5)
    parser.add_argument("--share", type=float, default=0.03, help="of observations in a tail")
    options = parser.parse_args()
    torch.set_num_threads(1)
    obs, cost, episode = read_replay(options.run_dir)
    episodes = np.unique(episode)
    print(f"{len(episodes)} episodes, {len(obs)} rows, cost in {cost.mean():.1%}")
    width = obs.shape[1]
    kinds = {"plain": RunningNormalizer(width), "tails": TailNormalizer(width, options.share)}
    for name, normalizer in kinds.items():
        normalizer.update(obs)
        features = torch.from_numpy(normalizer.normalize(obs))
        for split in range(options.splits):
            generator = np.random.default_rng(split)
            left_out = generator.choice(episodes, len(episodes) // 3, replace=False)
            held = np.isin(episode, left_out)
            predicted = fit(features, torch.from_numpy(cost), np.where(~held)[0], split).numpy()
            fresh, fitted = (auroc(predicted[rows], cost[rows] > 0) for rows in (held, ~held))
            print(f"{name}, split {split}: left out {fresh:.3f}, fitted {fitted:.3f}", flush=True)


if __name__ == "__main__":
    main()
