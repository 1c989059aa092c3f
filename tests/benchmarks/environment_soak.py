"""Compare the fast tasks with the untouched package over random tasks and seeds.

    OMP_NUM_THREADS=1 python -m tests.benchmarks.environment_soak --steps 1000000 --seed 0
                                                                  [--family velocity]

Stops at the first difference above 1e-12 (of the velocity tasks, of one bit), with the task and
seed that repeat it. Each piece is one task for 1,000 steps, in as many episodes as those take; of
the navigation tasks the goals met are printed, of the velocity tasks the steps.
"""

import argparse

import numpy as np

from tests.environments import test_fast, test_fast_velocity

PIECE = 1000


def main() -> None:
    """Compare piece after piece."""
    parser = argparse.ArgumentParser(description="Compare fast and untouched tasks at random.")
    parser.add_argument("--steps", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=0, help="of the choice of tasks and seeds")
    parser.add_argument("--family", choices=("navigation", "velocity"), default="navigation")
    arguments = parser.parse_args()
    generator = np.random.default_rng(arguments.seed)
    navigates = arguments.family == "navigation"
    tasks = test_fast.NAVIGATION if navigates else test_fast_velocity.VELOCITY
    compare = test_fast.compare if navigates else test_fast_velocity.compare
    for done in range(0, arguments.steps, PIECE):
        env_id = tasks[generator.integers(len(tasks))]
        first_seed = int(generator.integers(2**31))
        print(f"{done:9d} {env_id} from seed {first_seed}", end=" ", flush=True)
        print(compare(env_id, episodes=1, steps=PIECE, first_seed=first_seed), flush=True)


if __name__ == "__main__":
    main()
