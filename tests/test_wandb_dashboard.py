"""W&B's dashboards as code: the specification, word for word, and what a user meets.

After a change that is meant, renew the stored specification:
    python tests/test_wandb_dashboard.py
"""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from recorded_runs import write_run

from algd.errors import ConfigError, UserError
from algd.experiments import wandb_dashboard
from algd.experiments.cli import main
from algd.experiments.wandb_dashboard import GROUPS, build_report, build_workspace, run

GOLDEN = Path(__file__).with_name("wandb_dashboard.json")


def written(out: Path, runs: list[Path] | None = None) -> Any:
    assert run("somebody/safety", runs, out) == 0
    return json.loads(out.read_text())


def recorded_run(run_dir: Path, run_id: str) -> Path:
    run_dir.mkdir(exist_ok=True)
    (run_dir / "wandb.json").write_text(json.dumps({"run_id": run_id}))
    return run_dir


def test_the_specification_is_the_stored_one(tmp_path: Path, no_wandb_login: None) -> None:
    assert written(tmp_path / "new.json") == json.loads(GOLDEN.read_text())


def test_the_file_is_a_function_of_its_input(
    tmp_path: Path, no_wandb_login: None, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a.json", "deeper/b.json"):
        written(tmp_path / name)
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "deeper" / "b.json").read_bytes()
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("not logged in to W&B (wandb login): the specification is in ")


def test_every_curve_has_the_env_step_axis_a_title_and_a_unit(
    tmp_path: Path, no_wandb_login: None
) -> None:
    spec = written(tmp_path / "new.json")
    sections = spec["workspace"]["spec"]["section"]["panelBankConfig"]["sections"]
    assert [section["name"] for section in sections] == [group.name for group in GROUPS]
    panels = [panel for section in sections for panel in section["panels"]]
    curves = [panel["config"] for panel in panels if "Line Plot" in panel["viewType"]]
    assert len(curves) == sum(len(group.curves) for group in GROUPS)
    for curve in curves:
        assert curve["xAxis"] == "env_step"
        assert curve["xAxisTitle"] == "environment steps"
        assert curve["chartTitle"]
        assert curve["yAxisTitle"]
    identifiers = [panel["__id__"] for panel in panels]
    assert len(set(identifiers)) == len(identifiers)
    report = spec["report"]["spec"]["blocks"]
    grids = [block for block in report if block["type"] == "panel-grid"]
    assert len(grids) == 1 + len(GROUPS)


def test_every_metric_shown_is_one_that_runs_record() -> None:
    """Of the code that names metrics; a renamed one would leave an empty panel."""
    root = Path(wandb_dashboard.__file__).parents[2]
    sources = "".join(
        path.read_text()
        for house in ("alam", "algd/diffusion", "algd/training")
        for path in (root / house).glob("*.py")
    )
    shown = {name for group in GROUPS for curve in group.curves for name in curve.metrics}
    assert {name for name in shown if f'"{name}"' not in sources} == set()
    assert {name for group in GROUPS for name in group.media} == {
        *("multiplier/states", "pictures/multiplier_map", "pictures/energy", "eval/video")
    }


def test_run_directories_narrow_both_down(tmp_path: Path, no_wandb_login: None) -> None:
    runs = [recorded_run(tmp_path / name, name * 3) for name in ("a", "b")]
    text = json.dumps(written(tmp_path / "new.json", runs)["workspace"])
    assert '"aaa", "bbb"' in text
    report = json.dumps(written(tmp_path / "new.json", runs)["report"])
    assert report.count('"aaa", "bbb"') == 1 + len(GROUPS)


def test_a_directory_of_runs_stands_for_them(
    tmp_path: Path,
    no_wandb_login: None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b"):
        recorded_run(write_run(Path("runs", name)), name * 3)
    command = ["dashboard", "runs", "--wandb", "somebody/safety"]
    assert main(command) == 0
    assert '"aaa", "bbb"' in json.dumps(json.loads(Path("wandb_dashboard.json").read_text()))
    assert main([*command, "--videos", "none"]) == 2
    assert "--wandb takes no --videos" in capsys.readouterr().err
    Path("empty").mkdir()
    assert main(["dashboard", "empty", "--wandb", "somebody/safety"]) == 2
    assert "no run found in empty" in capsys.readouterr().err


def test_a_run_that_wandb_never_saw_is_named(tmp_path: Path, no_wandb_login: None) -> None:
    (tmp_path / "run").mkdir()
    with pytest.raises(ConfigError, match=r"run was not recorded by W&B: it holds no readable"):
        run("somebody/safety", [tmp_path / "run"], tmp_path / "new.json")
    (tmp_path / "run" / "wandb.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"wandb\.json"):
        run("somebody/safety", [tmp_path / "run"], tmp_path / "new.json")
    assert not (tmp_path / "new.json").exists()


@pytest.mark.parametrize("name", ["safety", "a/b/c", "/safety", "me/", " / "])
def test_a_name_that_is_no_entity_and_project_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--wandb must be ENTITY/PROJECT, got"):
        run(name, None, tmp_path / "new.json")


def test_a_missing_package_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "wandb_workspaces.workspaces", None)
    arguments = ["dashboard", "--wandb", "me/safety", "--out", str(tmp_path / "x.json")]
    assert main(arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    command = "pip install 'plotly>=6' 'wandb-workspaces>=0.4'"
    assert line.endswith(f"need the package wandb-workspaces: {command}")


class Saved:
    """Stands for a workspace or report whose server answers, or does not."""

    def __init__(self, name: str, log: list[str], error: Exception | None = None) -> None:
        self.name, self.log, self.error = name, log, error
        self.url = f"https://wandb.example/{name}"

    def save(self) -> None:
        self.log.append(self.name)
        if self.error is not None:
            raise self.error


def test_logged_in_both_are_created(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    log: list[str] = []
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setattr(wandb_dashboard, "build_workspace", lambda *_: Saved("workspace", log))
    monkeypatch.setattr(wandb_dashboard, "build_report", lambda *_: Saved("report", log))
    assert run("somebody/safety", None, tmp_path / "new.json") == 0
    assert log == ["report", "workspace"]
    assert capsys.readouterr().out.splitlines() == [
        "report: https://wandb.example/report",
        "workspace: https://wandb.example/workspace",
    ]
    assert not (tmp_path / "new.json").exists()
    refusing = Saved("report", log, PermissionError("no access\nto somebody"))
    monkeypatch.setattr(wandb_dashboard, "build_report", lambda *_: refusing)
    with pytest.raises(UserError, match=r"did not take the report for somebody/safety: no access$"):
        run("somebody/safety", None, tmp_path / "new.json")


def test_what_is_built_are_the_objects_that_wandb_saves() -> None:
    workspace, report = build_workspace("me", "safety"), build_report("me", "safety")
    for thing in (workspace, report):
        assert type(thing).__module__.startswith("wandb_workspaces")
        assert callable(thing.save)
    assert (report.entity, report.project) == (workspace.entity, workspace.project)


if __name__ == "__main__":
    spec = wandb_dashboard.specification(
        build_workspace("somebody", "safety"), build_report("somebody", "safety")
    )
    GOLDEN.write_text(json.dumps(spec, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
