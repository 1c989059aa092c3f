"""`algd ablate`: a grid of runs along one axis, with a table of intervals and figures."""

from pathlib import Path

from algd.experiments.arguments import VerbParser, positive_int, split_overrides

_WITH_VALUE = ("--env", "--variant", "--seeds", "--jobs", "--dir", "--preset")


def run(arguments: list[str]) -> int:
    """Run or finish an axis; 1 where cells failed."""
    from algd.experiments.ablation_axes import AXES
    from algd.experiments.ablation_plan import TASKS

    questions = "\n".join(
        f"  {axis.name:<16} {axis.question}\n{'':<18} {len(axis.variants)} variants on "
        f"{', '.join(axis.tasks)}"
        for axis in AXES.values()
    )
    parser = VerbParser(
        "ablate",
        usage="algd ablate AXIS [--env TASK_OR_ID ...] [--variant NAME ...] [--seeds N] "
        "[--jobs N] [--dir DIR] [--KEY=VALUE ...]",
        description="Compare the settings of one axis over seeds. Finished cells are never run "
        f"again.\n\naxes:\n{questions}\n\ntasks of seconds: {', '.join(TASKS)}; any other --env is "
        "an environment's id,\ntrained by its preset for as long as that, or "
        "--train.total_steps=N, says.",
    )
    parser.add_argument("axis", choices=tuple(AXES), metavar="AXIS")
    parser.add_argument(
        "--env", action="append", default=[], metavar="TASK_OR_ID", help="may be given repeatedly"
    )
    parser.add_argument(
        "--variant",
        action="append",
        default=[],
        metavar="NAME",
        help="a part of the axis: this setting of it; may be given repeatedly",
    )
    parser.add_argument("--seeds", type=positive_int, default=5, help="default 5")
    parser.add_argument("--jobs", type=positive_int, help="cells at a time; default: every core")
    parser.add_argument(
        "--dir", type=Path, metavar="DIR", help="of the grid; default runs/ablation-AXIS"
    )
    parser.add_argument(
        "--preset",
        action="append",
        default=[],
        metavar="PRESET_OR_FILE",
        help="replaces the preset of the axis; may be given repeatedly, later ones winning",
    )
    known, given = split_overrides(arguments, flags=("--help",), with_value=_WITH_VALUE)
    options = parser.parse_args(known)
    from algd.experiments.ablation import ablate
    from algd.experiments.ablation_cells import default_jobs
    from algd.experiments.yaml_files import COMMAND_LINE, parse_yaml

    overrides = {
        override.option.removeprefix("--"): parse_yaml(
            override.text, f"{COMMAND_LINE}: {override.option}", numbered=False
        )
        for override in given
    }
    results = ablate(
        options.axis,
        options.dir or Path("runs") / f"ablation-{options.axis}",
        envs=options.env,
        variants=options.variant,
        seeds=options.seeds,
        jobs=options.jobs or default_jobs(),
        presets=options.preset,
        overrides=overrides,
    )
    return 1 if any(result.error for result in results) else 0
