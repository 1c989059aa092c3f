"""Compare the fast navigation tasks with the untouched package over random tasks and seeds.

    OMP_NUM_THREADS=1 python -m tests.benchmarks.environment_soak --steps 1000000 --seed 0

Stops at the first difference above 1e-12, with the task and seed that repeat it. Each piece is one
task for 1,000 steps, in as many episodes as those take.
"""

import argparse

import numpy as np

from tests.environments.test_fast import NAVIGATION, compare

PIECE = 1000


def main() -> None:
    """Compare piece after piece."""
    parser = argparse.ArgumentParser(description="Compare fast and untouched tasks at random.")
    parser.add_argument("--steps", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=0, help="of the choice of tasks and seeds")
    arguments = parser.parse_args()
    generator = np.random.default_rng(arguments.seed)
    for done in range(0, arguments.steps, PIECE):
        env_id = NAVIGATION[generator.integers(len(NAVIGATION))]
        first_seed = int(generator.integers(2**31))
        print(f"{done:9d} {env_id} from seed {first_seed}", end=" ", flush=True)
        print("goals:", compare(env_id, episodes=1, steps=PIECE, first_seed=first_seed), flush=True)


if __name__ == "__main__":
    main()
