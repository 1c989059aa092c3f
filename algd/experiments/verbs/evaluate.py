"""`algd evaluate`: run a trained policy."""

from pathlib import Path

from algd.experiments.arguments import VerbParser, positive_int, seed_int
from algd.training.run_directory import POLICIES, require_run_dir


def run(arguments: list[str]) -> int:
    """Run a policy of a run directory."""
    parser = VerbParser("evaluate", description="Run a policy of a run directory.")
    parser.add_argument("run_dir", type=Path, metavar="RUN_DIR")
    parser.add_argument("--episodes", type=positive_int, default=10, help="default 10")
    parser.add_argument(
        "--mode", choices=("deterministic", "stochastic"), help="default: that of the run"
    )
    parser.add_argument(
        "--policy",
        choices=POLICIES,
        default="latest",
        help="the last checkpoint (default) or the best policy within the cost limit",
    )
    parser.add_argument("--video", action="store_true", help="an mp4 in RUN_DIR/videos")
    parser.add_argument("--seed", type=seed_int, help="default: that of the run")
    options = parser.parse_args(arguments)
    require_run_dir(options.run_dir)
    from algd.training.evaluation import evaluate_run

    evaluate_run(
        options.run_dir,
        episodes=options.episodes,
        mode=options.mode,
        policy=options.policy,
        video=options.video,
        seed=options.seed,
    )
    return 0
