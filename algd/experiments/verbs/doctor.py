"""`algd doctor`: examine this machine."""

from algd.experiments.arguments import VerbParser


def run(arguments: list[str]) -> int:
    """Examine versions, device, rendering and W&B login."""
    parser = VerbParser("doctor", description="Examine versions, device, rendering and W&B login.")
    parser.parse_args(arguments)
    from algd.experiments.doctor import run_doctor

    return run_doctor()
