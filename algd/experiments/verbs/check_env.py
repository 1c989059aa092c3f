"""`algd check-env`: say what is wrong with an environment."""

from algd.experiments.arguments import (
    Override,
    VerbParser,
    load_overridden,
    positive_int,
    split_overrides,
)

_PROBLEMS_FOUND = 1


def run(arguments: list[str]) -> int:
    """Examine an environment; 1 where a problem was found."""
    parser = VerbParser(
        "check-env",
        usage="algd check-env ID [--env.KEY=VALUE ...] [--steps N]",
        description="Say what is wrong with an environment, and what a random policy meets in it.",
    )
    parser.add_argument("id", metavar="ID", help="a Safety-Gymnasium or Gymnasium id, module:Id")
    parser.add_argument("--steps", type=positive_int, default=2000, help="default 2000")
    known, overrides = split_overrides(arguments, flags=("--help",), with_value=("--steps",))
    options = parser.parse_args(known)
    config = load_overridden([], [*overrides, Override("--env.id", options.id)])
    from algd.environments.checking import check_env

    findings = check_env(config.env, steps=options.steps, cost_limit=config.constraint.cost_limit)
    for finding in findings:
        print(finding)
    return _PROBLEMS_FOUND if any(finding.kind == "problem" for finding in findings) else 0
