"""What a user installs: two houses, one arrow, one lock, one environment built once."""

import ast
import functools
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import licences
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from algd.environments import safety_package

ROOT = Path(__file__).parents[1]
BUILD_FILES = ("Makefile", "pyproject.toml", "requirements.lock")
TOP_LEVEL = {
    *{".ci", ".gitignore", ".pre-commit-config.yaml"},
    *{"CITATION.cff", "CONTRIBUTING.md", "LICENSE", "README.md"},
    *{"Makefile", "pyproject.toml", "requirements.lock"},
    *{"alam", "algd", "configs", "notebooks", "tests"},
}


@functools.cache
def project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def run(*command: str | Path, cwd: Path = ROOT, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        list(map(str, command)),
        cwd=cwd,
        env=os.environ | environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )


# Imports


def imported_roots(path: Path) -> set[str]:
    roots: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            roots |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"relative import in {path}"
            roots.add((node.module or "").split(".")[0])
    return roots


def test_alam_knows_neither_algd_nor_anything_heavy() -> None:
    allowed = {"alam", "torch", "numpy", "einops", "jaxtyping"} | set(sys.stdlib_module_names)
    files = sorted((ROOT / "alam").rglob("*.py"))
    foreign = {path.name: imported_roots(path) - allowed for path in files}
    assert len(files) > 5
    assert not {name: roots for name, roots in foreign.items() if roots}


FRESH_IMPORT = """
import json, sys, time
started = time.process_time()
{statement}
heavy = ["torch", "wandb", "numpy", "gymnasium", "diffusers", "mujoco", "pydantic", "matplotlib"]
print(json.dumps([time.process_time() - started, [name for name in heavy if name in sys.modules]]))
"""


def fresh_import(statement: str) -> tuple[float, list[str]]:
    """Return CPU seconds (least of 3) and the heavy modules that were loaded."""
    seconds, heavy = [], []
    for _ in range(3):
        done = run(sys.executable, "-c", FRESH_IMPORT.format(statement=statement))
        assert done.returncode == 0, done.stderr
        *_, last = done.stdout.splitlines()
        taken, heavy = json.loads(last)
        seconds.append(taken)
    return min(seconds), heavy


def test_import_algd_is_light() -> None:
    seconds, heavy = fresh_import("import algd; algd.__version__")
    assert heavy == []
    assert seconds < 0.5


def test_the_command_line_answers_at_once() -> None:
    seconds, heavy = fresh_import(
        "from algd.experiments.cli import main; assert main(['--help']) == 0"
    )
    assert "torch" not in heavy
    assert "wandb" not in heavy
    assert seconds < 1.0


def test_load_is_found_when_it_is_first_named() -> None:
    import algd
    from algd.training import load

    assert algd.load is load.load
    with pytest.raises(AttributeError, match="module 'algd' has no attribute 'lode'"):
        algd.lode  # noqa: B018


WITHOUT = """
import sys
for name in sys.argv[1].split(","):
    sys.modules[name] = None
from algd.experiments.cli import main
sys.exit(main(sys.argv[2:]))
"""


def test_training_works_without_the_optional_packages(tmp_path: Path) -> None:
    missing = "wandb,tensorboard,torch.utils.tensorboard,imageio_ffmpeg,scipy,matplotlib"
    done = run(
        *[sys.executable, "-c", WITHOUT, missing],
        *["train", "algd", "--env.id=AnalyticBandit1-v0", "--run-dir", tmp_path / "run"],
        *["--train.total_steps=20", "--train.learning_starts=16", "--evaluation.video=false"],
        *["--evaluation.episodes=2", "--train.batch_size=8"],
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "metrics.csv").read_text().startswith("env_step,")
    assert "wandb" not in done.stderr.lower()


# The lock


HASH = re.compile(r"--hash=sha256:([0-9a-f]{64})")


def locked(text: str) -> dict[str, tuple[str, set[str]]]:
    """Return version and hashes of each package of a lock."""
    found: dict[str, tuple[str, set[str]]] = {}
    for entry in re.sub(r"^#.*\n", "", text, flags=re.MULTILINE).replace("\\\n", "").splitlines():
        requirement = Requirement(entry.partition(" --hash")[0])
        (specifier,) = requirement.specifier
        assert specifier.operator == "==", f"{requirement} is not a pin"
        assert requirement.url is None
        name = canonicalize_name(requirement.name)
        assert name not in found
        found[name] = (specifier.version, set(HASH.findall(entry)))
        assert entry.count("--") == len(found[name][1]), f"{name} has an option, or a hash twice"
    return found


def lock() -> str:
    return (ROOT / "requirements.lock").read_text()


def cuda_lock() -> str:
    """Return the lines that only the CUDA build of torch needs."""
    return "".join(re.findall(r"^#cuda (.*\n)", lock(), re.MULTILINE))


def pins() -> dict[str, str]:
    return {name: version for name, (version, _) in locked(lock()).items()}


def test_the_lock_names_no_index_and_no_host() -> None:
    text = lock()
    assert "://" not in text
    assert not re.search(r"^\s*-(?!-hash=)", text, re.MULTILINE)  # an option such as --index-url
    assert not re.search(r"\b[\w-]+\.(org|com|io|net)\b", text)


def test_every_pin_has_a_hash() -> None:
    found = locked(lock()) | locked(cuda_lock())
    assert len(found) > 150
    assert not [name for name, (_, hashes) in found.items() if not hashes]


def test_the_lock_knows_the_cpu_builds_of_the_torch_that_it_pins() -> None:
    """Those are on PyTorch's own index; `make lock` takes their hashes from the lock's head."""
    version, hashes = locked(lock())["torch"]
    builds = re.findall(r"^# torch (\S+) (\S+) (\S+) ([0-9a-f]{64})$", lock(), re.MULTILINE)
    assert {build[:3] for build in builds} == {
        (version, python, machine)
        for python in ("cp311", "cp312", "cp313")
        for machine in ("x86_64", "aarch64")
    }
    assert {build[3] for build in builds} < hashes  # PyPI's builds, too


def test_the_lock_pins_every_dependency_within_its_range() -> None:
    declared = list(project()["project"]["dependencies"])
    for extra in project()["project"]["optional-dependencies"].values():
        declared += extra
    pinned = pins()
    for requirement in map(Requirement, declared):
        version = pinned.get(canonicalize_name(requirement.name))
        assert version is not None, f"{requirement} is not in requirements.lock; run: make lock"
        assert requirement.specifier.contains(version, prereleases=True), requirement


def test_the_lock_holds_for_the_cpu_build_of_torch_and_keeps_what_cuda_needs_apart() -> None:
    cuda = ("nvidia-", "cuda-", "triton")
    assert not [name for name in pins() if name.startswith(cuda)]
    assert {"nvidia-cublas", "nvidia-cudnn-cu13", "triton"} < locked(cuda_lock()).keys()
    assert all(name.startswith(cuda) for name in locked(cuda_lock()))


def test_every_pinned_package_is_permissively_licensed_or_a_stated_exception(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert licences.main() == 0, capsys.readouterr().out
    assert len(licences.licences()) > 100
    assert not licences.is_permissive("GPL-3.0-only")
    assert not licences.is_permissive("MIT AND GPL-3.0-only")
    assert licences.is_permissive("GPL-3.0-only OR MIT")


def test_safety_gymnasium_has_one_version_everywhere() -> None:
    pin = f"safety-gymnasium=={safety_package.VERSION}"
    assert project()["dependency-groups"]["safety"] == [pin]
    assert pins()["safety-gymnasium"] == safety_package.VERSION


def test_the_project_resolves_with_uv(tmp_path: Path) -> None:
    """Needs a package index: without one it fails and says so."""
    (tmp_path / "algd").mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE", "algd/__init__.py"):
        shutil.copy(ROOT / name, tmp_path / name)
    done = run(
        *[sys.executable, "-m", "uv", "lock", "--python", sys.executable],
        cwd=tmp_path,
        UV_PYTHON_DOWNLOADS="never",
    )
    unreachable = "error sending request" in done.stderr or "dns error" in done.stderr
    assert not unreachable, f"uv reached no package index, so nothing is known: {done.stderr}"
    assert done.returncode == 0, done.stderr
    lock = tomllib.loads((tmp_path / "uv.lock").read_text())
    versions = {package["name"]: package.get("version", "") for package in lock["package"]}
    assert versions["safety-gymnasium"] == safety_package.VERSION
    assert versions["gymnasium"].startswith("1.")
    assert versions["mujoco"].startswith("3.")
    assert not {"pygame", "gymnasium-robotics"} & versions.keys()


# The wheel


def test_a_wheel_holds_the_two_houses_and_the_presets(tmp_path: Path) -> None:
    built = run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", tmp_path)
    assert built.returncode == 0, built.stderr
    (wheel,) = tmp_path.glob("algd-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        archive.extractall(tmp_path / "site")
    sources = {
        str(path.relative_to(ROOT))
        for house in ("alam", "algd")
        for path in (ROOT / house).rglob("*.py")
    }
    presets = {f"algd/configs/{path.name}" for path in (ROOT / "configs").glob("*.yaml")}
    assert len(presets) > 5
    assert sources | presets | {"alam/py.typed", "algd/py.typed"} <= names
    assert {name.split("/")[0] for name in names if ".dist-info" not in name} == {"alam", "algd"}
    listed = run(
        *[sys.executable, "-m", "algd.experiments.cli", "presets"],
        cwd=tmp_path,
        PYTHONPATH=str(tmp_path / "site"),
    )
    assert str(tmp_path / "site" / "algd" / "configs") in listed.stdout, listed.stderr
    assert {line.split()[0] for line in listed.stdout.splitlines() if line} > {"algd", "sac_alam"}


# The environment that make builds

# Stands for python3 and for the one in the environment: notes what it is asked, installs nothing.
FAKE_PYTHON = """#!/bin/sh
case "$*" in
*version_info*) exit ${TOO_OLD:-0};;
*ensurepip*) exit ${NO_VENV:-0};;
-V) echo "Python 3.9.18"; exit;;
esac
echo "$*" >> "$LOG"
case "$*" in
"-m venv"*)
  info=.venv/lib/python3/site-packages/torch-2.dist-info
  rm -rf .venv; mkdir -p .venv/bin $info; cp "$0" .venv/bin/python
  echo "Requires-Dist: ${TORCH_NEEDS:-filelock}" > $info/METADATA;;
*--no-deps*--editable*) exit ${PIP_FAILS:-0};;
esac
"""


class Checkout:
    """The build files in a directory of their own, and a python that only notes its arguments."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        for name in BUILD_FILES:
            shutil.copy(ROOT / name, directory)
        self.python = directory / "python3"
        self.python.write_text(FAKE_PYTHON)
        self.python.chmod(0o755)
        self.log = directory / "log"

    def build(self, **environment: str) -> tuple[int, list[str]]:
        """Return the exit code of `make environment` and what it had python do."""
        self.log.write_text("")
        made = run(
            *["make", "environment", f"PYTHON={self.python}"],
            cwd=self.directory,
            LOG=str(self.log),
            MAKEFLAGS="",
            **environment,
        )
        self.complaint = made.stderr
        commands = self.log.read_text().splitlines()
        return made.returncode, ["venv" if "-m venv" in line else "pip" for line in commands]


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    return Checkout(tmp_path)


def test_a_second_make_does_not_install_again(checkout: Checkout) -> None:
    assert checkout.build() == (0, ["venv", *["pip"] * 4])
    assert checkout.build() == (0, [])
    (checkout.directory / "requirements.lock").touch()
    (checkout.directory / "pyproject.toml").touch()
    assert checkout.build() == (0, [])


@pytest.mark.parametrize("name", ["requirements.lock", "pyproject.toml"])
def test_a_changed_pin_updates_the_environment_in_place(checkout: Checkout, name: str) -> None:
    checkout.build()
    with (checkout.directory / name).open("a") as file:
        file.write("# changed\n")
    assert checkout.build() == (0, ["pip"] * 4)
    assert checkout.build() == (0, [])
    assert len(list((checkout.directory / ".venv").glob(".built-*"))) == 1


def test_an_interrupted_build_starts_again_from_nothing(checkout: Checkout) -> None:
    code, commands = checkout.build(PIP_FAILS="1")
    assert code != 0
    assert commands == ["venv", *["pip"] * 4]
    assert checkout.build() == (0, ["venv", *["pip"] * 4])
    with (checkout.directory / "requirements.lock").open("a") as file:
        file.write("# changed\n")
    assert checkout.build(PIP_FAILS="1")[0] != 0
    assert checkout.build() == (0, ["venv", *["pip"] * 4])


def test_what_the_cuda_build_needs_is_installed_with_that_build_alone(checkout: Checkout) -> None:
    code, commands = checkout.build(TORCH_NEEDS="nvidia-cublas==13.1")
    assert (code, commands) == (0, ["venv", *["pip"] * 5])
    pips = [line for line in checkout.log.read_text().splitlines() if "pip install" in line]
    assert all("--no-deps" in line for line in pips)
    assert ["--require-hashes" in line for line in pips] == [
        False,
        True,
        True,
        False,
    ]  # torch's is looked up; the checkout has none


def test_an_unusable_python_is_named_before_anything_is_built(checkout: Checkout) -> None:
    missing = run("make", "environment", "PYTHON=/no/such/python", cwd=checkout.directory)
    assert missing.returncode != 0
    assert "/no/such/python was not found. Install Python >= 3.11" in missing.stderr
    assert checkout.build(TOO_OLD="1") == (2, [])
    assert f"algd needs Python >= 3.11, {checkout.python} is 3.9.18." in checkout.complaint
    assert checkout.build(NO_VENV="1") == (2, [])
    assert (
        "lacks the venv module. On Debian or Ubuntu: apt install python3-venv" in checkout.complaint
    )
    assert not (checkout.directory / ".venv").exists()


# The repository


def test_the_repository_has_no_other_top_level_entries() -> None:
    listed = run("git", "ls-files", "-z")
    assert listed.returncode == 0, listed.stderr
    assert {name.split("/")[0] for name in listed.stdout.split("\0") if name} <= TOP_LEVEL
