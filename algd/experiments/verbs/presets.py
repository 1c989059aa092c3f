"""`algd presets`: list the shipped configurations."""

from algd.experiments.arguments import VerbParser


def run(arguments: list[str]) -> int:
    """List the shipped configurations."""
    parser = VerbParser("presets", description="List the shipped configurations.")
    parser.parse_args(arguments)
    from algd.experiments.yaml_files import list_presets, presets_dir

    presets = list_presets()
    width = max(map(len, presets), default=0)
    for name, comment in presets.items():
        print(f"{name:<{width}}  {comment}")
    print(f"\nThe files are in {presets_dir()}")
    return 0
