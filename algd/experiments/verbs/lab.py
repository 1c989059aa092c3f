"""`algd lab`: figures and a table of energies, scores, multipliers and critics of a run."""

from pathlib import Path

from algd.experiments.arguments import VerbParser, positive_int, seed_int
from algd.training.run_directory import POLICIES


def run(arguments: list[str]) -> int:
    """Measure a run and write its figures and table."""
    parser = VerbParser(
        "lab",
        description="Measure a trained run: energies with and without augmentation, modes, "
        "denoising paths,\nscore field, multiplier map, calibration. Writes png files and a table.",
    )
    parser.add_argument("run_dir", type=Path, metavar="RUN_DIR")
    parser.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="default RUN_DIR/lab, of best_safe RUN_DIR/lab_best_safe",
    )
    parser.add_argument("--policy", choices=POLICIES, default="latest", help="default latest")
    parser.add_argument(
        "--steps",
        type=positive_int,
        default=5_000,
        help="steps of the policy, and as many of uniform actions; default 5000",
    )
    parser.add_argument("--seed", type=seed_int, default=0, help="of the episodes; default 0")
    options = parser.parse_args(arguments)
    from algd.training.run_directory import require_run_dir

    require_run_dir(options.run_dir)
    from algd.experiments.lab import run_lab

    run_lab(
        options.run_dir,
        options.out,
        policy=options.policy,
        steps=options.steps,
        seed=options.seed,
    )
    return 0
