"""Examine this machine: can the main job run here, what is missing, what to do about it.

In: the installed packages, the device, OpenGL, W&B's login, the disk. Out: a table on stdout, one
line per subject and one line of advice under each that needs it. No server is asked.
"""

import importlib.metadata
import importlib.util
import os
import platform
import shutil
import sys
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import algd
from algd.errors import UserError

MINIMUM_PYTHON = (3, 11)
_GIB = 2**30
_LITTLE_SPACE, _TOO_LITTLE_SPACE = 5 * _GIB, 0.5 * _GIB
# Training goes on without these; the text says what is lost.
_OPTIONAL = {
    "diffusers": "noise schedules then come from their formulas",
    "imageio-ffmpeg": "no videos",
    "wandb": "runs are recorded in CSV files only",
}
_NVIDIA_DRIVER = Path("/proc/driver/nvidia/version")


@dataclass(frozen=True)
class Finding:
    """One line of the table; a ``problem`` keeps the main job from running, a ``note`` does not."""

    kind: Literal["ok", "note", "problem"]
    subject: str
    text: str
    advice: str | None = None


def run_doctor() -> int:
    """Print what was found; return 0 if the main job can run here, else 1."""
    problems = 0
    for examine in EXAMINATIONS:
        for finding in _guarded(examine):
            problems += finding.kind == "problem"
            print(f"{finding.kind:<8} {finding.subject:<18} {finding.text}", flush=True)
            if finding.advice is not None:
                print(f"{'':<8} {'':<18} -> {finding.advice}", flush=True)
    print("\nThe main job cannot run here yet." if problems else "\nThe main job can run here.")
    return 1 if problems else 0


def examine_python() -> Iterator[Finding]:
    """Report the interpreter and the installation of algd itself."""
    version = platform.python_version()
    where = f"{version} ({sys.executable})"
    if sys.version_info < MINIMUM_PYTHON:
        wanted = ".".join(map(str, MINIMUM_PYTHON))
        yield Finding("problem", "Python", where, f"install Python >= {wanted}")
    else:
        yield Finding("ok", "Python", where)
    yield Finding("ok", "algd", f"{algd.__version__} ({Path(algd.__file__).parent})")


def examine_packages() -> Iterator[Finding]:
    """Compare every package that algd depends on with what is installed."""
    from packaging.requirements import Requirement

    for text in _requirements():
        requirement = Requirement(text)
        if requirement.marker is not None and not requirement.marker.evaluate():
            continue
        advice = f'pip install "{requirement.name}{requirement.specifier}"'
        lost = _OPTIONAL.get(requirement.name)
        kind: Literal["note", "problem"] = "problem" if lost is None else "note"
        if lost is not None:
            advice += f"; without it {lost}"
        try:
            version = importlib.metadata.version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            yield Finding(kind, requirement.name, "not installed", advice)
            continue
        if requirement.specifier.contains(version, prereleases=True):
            yield Finding("ok", requirement.name, version)
        else:
            wanted = f"{version}, algd needs {requirement.specifier}"
            yield Finding(kind, requirement.name, wanted, advice)


def examine_safety_gymnasium() -> Iterator[Finding]:
    """Import the tasks through the compatibility layer, as training does."""
    from algd.environments import safety_package

    safety_package.load()  # says itself what is missing
    yield Finding("ok", "safety-gymnasium", f"{safety_package.VERSION}, its tasks import")


def examine_device() -> Iterator[Finding]:
    """Report what torch would train on."""
    import torch

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    threads = os.environ.get("OMP_NUM_THREADS")
    note = "" if threads is None else f", OMP_NUM_THREADS={threads}"
    yield Finding("ok", "CPU", f"{cores} cores usable{note}")
    if torch.cuda.is_available():
        names = ", ".join(
            torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())
        )
        yield Finding("ok", "CUDA", f"{names} (CUDA {torch.version.cuda})")
    elif _NVIDIA_DRIVER.exists():
        build = "its CPU build" if torch.version.cuda is None else f"CUDA {torch.version.cuda}"
        yield Finding(
            "note",
            "CUDA",
            f"torch ({build}) cannot use the NVIDIA driver here; training runs on the CPU",
            "install a torch build that fits the driver; nvidia-smi shows the newest CUDA it takes",
        )
    else:
        yield Finding("ok", "CUDA", "none; training runs on the CPU")


def examine_rendering() -> Iterator[Finding]:
    """Report the OpenGL backend for videos."""
    from algd.environments.rendering import INSTALL_GL, gl_backend

    backend = gl_backend()
    if backend is None:
        yield Finding("note", "OpenGL", "no offscreen backend works: no videos", INSTALL_GL)
    else:
        yield Finding("ok", "OpenGL", f"{backend} renders offscreen")


def examine_wandb() -> Iterator[Finding]:
    """Report how W&B would record a run started now."""
    from algd.training.wandb_run import choose_mode, login_source

    if importlib.util.find_spec("wandb") is None:
        return  # said among the packages
    source = login_source()
    mode = choose_mode("auto")
    if source is not None:
        yield Finding("ok", "W&B", f"logged in ({source}); runs are recorded {mode}")
    elif mode == "disabled":
        yield Finding("ok", "W&B", "switched off by WANDB_MODE")
    else:
        advice = "wandb login; offline runs go up with: wandb sync RUN_DIR/wandb/offline-run-*"
        yield Finding("note", "W&B", "not logged in; runs are recorded offline", advice)


def examine_disk() -> Iterator[Finding]:
    """Report whether runs can be written below the working directory."""
    here = Path.cwd()
    free = shutil.disk_usage(here).free
    text = f"{free / _GIB:.1f} GiB free in {here}"
    if not os.access(here, os.W_OK):
        yield Finding("problem", "disk", f"{here} is not writable", "go to another directory")
    elif free < _TOO_LITTLE_SPACE:
        yield Finding("problem", "disk", text, "free some space: a run needs at least 0.5 GiB")
    elif free < _LITTLE_SPACE:
        yield Finding("note", "disk", text, "a run of 1e6 steps with checkpoints takes up to 5 GiB")
    else:
        yield Finding("ok", "disk", text)


EXAMINATIONS: tuple[Callable[[], Iterator[Finding]], ...] = (
    examine_python,
    examine_packages,
    examine_safety_gymnasium,
    examine_device,
    examine_rendering,
    examine_wandb,
    examine_disk,
)


def _guarded(examine: Callable[[], Iterator[Finding]]) -> Iterator[Finding]:
    """Turn whatever keeps an examination from its end into a finding of its own."""
    subject = examine.__name__.removeprefix("examine_").replace("_", "-")
    try:
        yield from examine()
    except UserError as error:
        yield Finding("problem", subject, "cannot be used", str(error))
    except ModuleNotFoundError as error:
        yield Finding("problem", subject, f"{error.name} is missing", f"pip install {error.name}")
    except Exception as error:  # a broken library fails in its own way, and the rest matters too
        yield Finding("problem", subject, f"{type(error).__name__}: {error}")


def _requirements() -> list[str]:
    """Return algd's own dependencies: of the checkout, or as installed."""
    project = Path(algd.__file__).parents[1] / "pyproject.toml"
    if project.is_file():
        with project.open("rb") as file:
            return tomllib.load(file)["project"]["dependencies"]
    return [text for text in importlib.metadata.requires("algd") or [] if "extra ==" not in text]
