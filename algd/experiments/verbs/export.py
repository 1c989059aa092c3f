"""`algd export`: turn a run into a policy that can be given away."""

from pathlib import Path

from algd.experiments.arguments import VerbParser, positive_int
from algd.training.run_directory import POLICIES


def run(arguments: list[str]) -> int:
    """Export the policy of a run, and push it if asked."""
    parser = VerbParser(
        "export",
        description="Write weights, configuration, normaliser and a model card with the cost of\n"
        "many episodes; with --onnx also graphs that run without torch.",
    )
    parser.add_argument("run_dir", type=Path, metavar="RUN_DIR")
    parser.add_argument("-o", "--out", type=Path, metavar="DIR", help="default: RUN_DIR/export")
    parser.add_argument(
        "--policy",
        choices=POLICIES,
        default="latest",
        help="the last checkpoint (default) or the best policy within the cost limit",
    )
    parser.add_argument(
        "--episodes", type=positive_int, default=100, help="behind the card's numbers; default 100"
    )
    parser.add_argument(
        "--mode", choices=("deterministic", "stochastic"), help="of these; default: the run's own"
    )
    parser.add_argument("--onnx", action="store_true", help="also write and check ONNX graphs")
    parser.add_argument("--push", metavar="OWNER/NAME", help="to the Hugging Face hub")
    parser.add_argument("--private", action="store_true", help="a new repository is private")
    options = parser.parse_args(arguments)
    if options.private and options.push is None:
        parser.error("--private goes with --push OWNER/NAME")
    from algd.training.run_directory import require_run_dir

    require_run_dir(options.run_dir)
    from algd.experiments.export import export_run, print_report

    out = options.run_dir / "export" if options.out is None else options.out
    report = export_run(
        options.run_dir,
        out,
        episodes=options.episodes,
        policy=options.policy,
        onnx=options.onnx,
        mode=options.mode,
        repo=options.push,
    )
    print_report(report)
    if options.push is not None:
        from algd.training.hub import push_to_hub

        print(f"pushed: {push_to_hub(out, options.push, private=options.private)}")
    return 0
