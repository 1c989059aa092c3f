"""List the licences of the pinned packages, as their own metadata states them.

In: requirements.lock and the environment that runs this. Out: a line per package that is installed
here, then a count per licence; exit code 1 if one is neither permissive nor among the exceptions.

    python tests/licences.py
"""

import re
import sys
from collections import Counter
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

LOCK = Path(__file__).parents[1] / "requirements.lock"
# Allow use and distribution under any licence, given the notice. Words of an expression or a name.
PERMISSIVE = re.compile(
    r"(MIT(-CMU)?|MIT License|0BSD|(\d-Clause )?BSD( License)?|BSD-[23]-Clause|Apache([- ]2\.0)?|"
    r"Apache Software License|Apache-2\.0 WITH LLVM-exception|ISC( License \(ISCL\))?|PSF-2\.0|"
    r"Python Software Foundation License|CNRI-Python|Zlib|CC0-1\.0|BSL-1\.0|DFSG approved)"
)
EXCEPTIONS = {
    "certifi": "MPL-2.0: binds changes of its own files alone, and none are made",
    "hypothesis": "MPL-2.0: as certifi; for tests alone",
    "pathspec": "MPL-2.0: as certifi; builds the wheel",
    "tqdm": "MPL-2.0 AND MIT: as certifi",
}
BUNDLED = {
    "imageio-ffmpeg": "carries the program ffmpeg, under the GPL; run as a process of its own",
    "mujoco": "what it is linked with: LICENSES_THIRD_PARTY.md of its wheel",
}


def licence(package: Distribution) -> str:
    """Return what the metadata says: an expression, else classifiers, else the free text."""
    metadata = package.metadata
    classified = [
        text.rpartition(" :: ")[2]
        for text in metadata.get_all("Classifier") or []
        if text.startswith("License :: ") and text != "License :: OSI Approved"
    ]
    text = (metadata.get("License") or "").strip().partition("\n")[0]
    return metadata.get("License-Expression") or " AND ".join(classified) or text or "not stated"


def is_permissive(stated: str) -> bool:
    """Say whether every part of an expression is (of one with OR, a part)."""
    choices = [choice.split(" AND ") for choice in stated.split(" OR ")]
    return any(all(PERMISSIVE.fullmatch(part) for part in parts) for parts in choices)


def licences() -> dict[str, tuple[str, str]]:
    """Return version and licence of every pinned package that is installed here."""
    found: dict[str, tuple[str, str]] = {}
    for name in re.findall(r"^([a-z][\w.-]*)==", LOCK.read_text(), re.MULTILINE):
        try:
            package = distribution(name)
        except PackageNotFoundError:  # of another operating system
            continue
        found[name] = (package.version, licence(package))
    return found


def main() -> int:
    """Print the list."""
    found = licences()
    for name, (version, stated) in found.items():
        why = EXCEPTIONS.get(name) or BUNDLED.get(name, "")
        print(f"{name:<40} {version:<16} {stated}{'  # ' + why if why else ''}")
    print()
    for stated, count in Counter(stated for _, stated in found.values()).most_common():
        print(f"{count:4d}  {stated}")
    refused = [
        n for n, (_, stated) in found.items() if not is_permissive(stated) and n not in EXCEPTIONS
    ]
    if refused:
        print(f"\nneither permissive nor an exception: {', '.join(refused)}")
    return 1 if refused else 0


if __name__ == "__main__":
    sys.exit(main())
