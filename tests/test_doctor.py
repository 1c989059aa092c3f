"""`algd doctor` finds what is wrong with a machine and says what to do about it."""

import importlib.metadata
import importlib.util
import sys
from collections import namedtuple
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from algd.environments import rendering, safety_package
from algd.errors import EnvironmentFault
from algd.experiments import doctor
from algd.experiments.doctor import Finding, run_doctor

Usage = namedtuple("Usage", ["total", "used", "free"])


def found(examine: Callable[[], Iterator[Finding]], subject: str) -> Finding:
    return next(finding for finding in examine() if finding.subject == subject)


def test_a_whole_machine_can_run_the_main_job(
    no_wandb_login: None, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_doctor() == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "The main job can run here."
    subjects = {line.split()[1] for line in lines if line.startswith(("ok ", "note "))}
    assert {"Python", "torch", "mujoco", "safety-gymnasium", "CUDA", "OpenGL", "disk"} <= subjects


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> dict[str, str | None]:
    """Versions that replace the real ones; None removes the package."""
    versions: dict[str, str | None] = {}
    real = importlib.metadata.version

    def version(name: str) -> str:
        given = versions.get(name, real(name))
        if given is None:
            raise importlib.metadata.PackageNotFoundError(name)
        return given

    monkeypatch.setattr(importlib.metadata, "version", version)
    return versions


def test_a_missing_package_is_a_problem_with_its_remedy(
    installed: dict[str, str | None], capsys: pytest.CaptureFixture[str]
) -> None:
    installed["mujoco"] = None
    finding = found(doctor.examine_packages, "mujoco")
    assert (finding.kind, finding.text) == ("problem", "not installed")
    assert finding.advice in ('pip install "mujoco<4,>=3.3"', 'pip install "mujoco>=3.3,<4"')


@pytest.mark.parametrize(
    ("version", "kind"), [("0.28.1", "problem"), ("1.2.0", "ok"), ("2.0", "problem")]
)
def test_a_version_outside_the_range_is_a_problem(
    version: str, kind: str, installed: dict[str, str | None]
) -> None:
    installed["gymnasium"] = version
    assert found(doctor.examine_packages, "gymnasium").kind == kind


def test_a_local_build_of_torch_counts_as_its_version(installed: dict[str, str | None]) -> None:
    installed["torch"] = "2.11.0+cu130"
    assert found(doctor.examine_packages, "torch").kind == "ok"


@pytest.mark.parametrize("name", ["wandb", "diffusers", "imageio-ffmpeg"])
def test_an_optional_package_is_only_noted(name: str, installed: dict[str, str | None]) -> None:
    installed[name] = None
    finding = found(doctor.examine_packages, name)
    assert finding.kind == "note"
    assert finding.advice is not None
    assert "; without it " in finding.advice


def test_one_problem_makes_the_exit_code_1_and_hides_no_other_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse() -> None:
        raise EnvironmentFault("safety-gymnasium 0.9 is installed; install it with: pip ...")

    monkeypatch.setattr(safety_package, "load", refuse)
    monkeypatch.setattr(rendering, "gl_backend", lambda: None)
    assert run_doctor() == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "The main job cannot run here yet."
    problem = next(k for k, line in enumerate(lines) if line.startswith("problem"))
    assert lines[problem].split()[1] == "safety-gymnasium"
    assert "-> safety-gymnasium 0.9 is installed; install it with: pip" in lines[problem + 1]
    assert any(line.startswith("note     OpenGL") for line in lines)
    assert any("apt-get install libegl1" in line for line in lines)


def test_a_broken_library_is_a_finding_not_a_crash(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def examine_something() -> Iterator[Finding]:
        yield Finding("ok", "first", "fine")
        raise ImportError("libfoo.so.1: cannot open shared object file")

    def examine_missing() -> Iterator[Finding]:
        yield from ()
        raise ModuleNotFoundError("No module named 'mujoco'", name="mujoco")

    monkeypatch.setattr(doctor, "EXAMINATIONS", (examine_something, examine_missing))
    assert run_doctor() == 1
    lines = [line.split(maxsplit=2) for line in capsys.readouterr().out.splitlines()]
    assert lines[0] == ["ok", "first", "fine"]
    assert lines[1][:2] == ["problem", "something"]
    assert lines[1][2].endswith("libfoo.so.1: cannot open shared object file")
    assert lines[2] == ["problem", "missing", "mujoco is missing"]
    assert lines[3] == ["->", "pip", "install mujoco"]


def test_an_old_python_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "version_info", (3, 10, 4, "final", 0))
    finding = found(doctor.examine_python, "Python")
    assert (finding.kind, finding.advice) == ("problem", "install Python >= 3.11")


def test_a_gpu_that_torch_cannot_use_is_noted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = tmp_path / "version"
    driver.touch()
    monkeypatch.setattr(doctor, "_NVIDIA_DRIVER", driver)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert found(doctor.examine_device, "CUDA").kind == "note"
    driver.unlink()
    assert found(doctor.examine_device, "CUDA").kind == "ok"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: f"GPU {index}")
    assert found(doctor.examine_device, "CUDA").text.startswith("GPU 0, GPU 1 (CUDA ")


def test_wandb_login_is_reported(no_wandb_login: None, monkeypatch: pytest.MonkeyPatch) -> None:
    assert found(doctor.examine_wandb, "W&B").kind == "note"
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    finding = found(doctor.examine_wandb, "W&B")
    assert (finding.kind, finding.text) == (
        "ok",
        "logged in (WANDB_API_KEY); runs are recorded online",
    )
    assert "0000" not in str(finding)
    monkeypatch.delenv("WANDB_API_KEY")
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert found(doctor.examine_wandb, "W&B").text == "switched off by WANDB_MODE"
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "wandb" else real(name)
    )
    assert list(doctor.examine_wandb()) == []


@pytest.mark.parametrize(
    ("free_gib", "kind"), [(0.4, "problem"), (0.6, "note"), (4.9, "note"), (5.1, "ok")]
)
def test_little_space_is_said(free_gib: float, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = Usage(100 * 2**30, 0, int(free_gib * 2**30))
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: usage)
    assert found(doctor.examine_disk, "disk").kind == kind


def test_an_unwritable_directory_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.os, "access", lambda path, mode: False)
    finding = found(doctor.examine_disk, "disk")
    assert (finding.kind, finding.advice) == ("problem", "go to another directory")


def test_an_installed_algd_is_compared_with_its_own_metadata(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor.algd, "__file__", str(tmp_path / "algd" / "__init__.py"))
    monkeypatch.setattr(
        importlib.metadata,
        "requires",
        lambda name: ["einops>=0.8", 'pytest>=8; extra == "dev"', "numpy<3,>=99"],
    )
    kinds = {finding.subject: finding.kind for finding in doctor.examine_packages()}
    assert kinds == {"einops": "ok", "numpy": "problem"}
