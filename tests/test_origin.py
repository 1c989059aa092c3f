"""The lines of a config.yaml that name the code a run was trained with."""

import subprocess
from pathlib import Path

import pytest

from algd import __version__
from algd.training import origin
from algd.training.origin import commits_of, with_origin


def git(directory: Path, *words: str) -> str:
    identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
    called = subprocess.run(
        ["git", *identity, *words], cwd=directory, capture_output=True, text=True, check=True
    )
    return called.stdout.strip()


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package in a repository of its own, taken for algd."""
    monkeypatch.setattr(origin, "_PACKAGE", tmp_path)
    (tmp_path / "__init__.py").write_text("")
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-qm", "first")
    return tmp_path


def test_a_checkout_is_named_by_its_commit_and_whether_it_was_changed(package: Path) -> None:
    commit = git(package, "rev-parse", "--short", "HEAD")
    assert with_origin("seed: 0\n") == f"# algd {__version__}, commit {commit}\nseed: 0\n"
    (package / "__init__.py").write_text("changed = True\n")
    assert commits_of(with_origin("seed: 0\n")) == [f"{commit}-dirty"]


def test_a_run_that_other_code_continues_names_both(package: Path) -> None:
    first = with_origin("steps: 1\n")
    assert with_origin("steps: 2\n", first) == first.replace("steps: 1", "steps: 2")
    git(package, "commit", "-q", "--allow-empty", "-m", "second")
    both = commits_of(with_origin("steps: 2\n", first))
    assert both == [*commits_of(first), git(package, "rev-parse", "--short", "HEAD")]


def test_a_package_inside_another_repository_has_no_commit(package: Path) -> None:
    git(package, "rm", "-q", "--cached", "__init__.py")
    git(package, "commit", "-qm", "without the package")
    assert with_origin("seed: 0\n") == f"# algd {__version__}\nseed: 0\n"
    assert commits_of(with_origin("seed: 0\n")) == []
