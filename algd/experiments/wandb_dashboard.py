"""W&B's own dashboards as code: a workspace and a report for the runs that algd records.

In: ENTITY/PROJECT and, if wanted, run directories that narrow it down. Out: both created in W&B
when logged in; otherwise the same specification as JSON, as wandb-workspaces would send it.
"""

import json
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from algd.errors import ConfigError, UserError, install_command
from algd.training.run_directory import make_output_directory
from algd.training.wandb_run import login_source

STEP = "env_step"
TITLE = "algd: return, cost and multiplier"
# What random identifiers of panels and blocks are named, so that a specification is a function
# of its input alone; W&B takes any unique text.
_ID_KEYS = ("__id__", "id")


@dataclass(frozen=True)
class Curve:
    """One line plot over environment steps; several metrics share it."""

    title: str
    metrics: tuple[str, ...]
    unit: str


@dataclass(frozen=True)
class Group:
    """A section of the workspace and a chapter of the report; ``text`` says how to read it."""

    name: str
    text: str
    curves: tuple[Curve, ...] = ()
    media: tuple[str, ...] = ()


GROUPS = (
    Group(
        "Evaluation",
        "Deterministic or best-of-N policy on start states that training does not see. A policy is "
        "safe where the cost is at most constraint.cost_limit.",
        (
            Curve("Return", ("eval/return",), "reward per episode"),
            Curve("Cost", ("eval/cost",), "cost per episode"),
            Curve("Episodes over the limit", ("eval/violation_rate",), "share of episodes"),
        ),
    ),
    Group(
        "Training episodes",
        "What acting in training earned and cost, exploration included.",
        (
            Curve("Return", ("train/return",), "reward per episode"),
            Curve("Cost", ("train/cost",), "cost per episode"),
            Curve("Episode length", ("train/episode_length",), "steps"),
        ),
    ),
    Group(
        "Constraint",
        "The multiplier should rise while the violation is positive and rest where it is 0. A "
        "share at the bound says that some states cannot be made safe.",
        (
            Curve("Multiplier, mean over states", ("train/multiplier",), "per unit of violation"),
            Curve("Violation", ("train/violation",), "cost over the threshold, in its unit"),
            Curve("States at the bound", ("train/multiplier_at_bound",), "share of states"),
            Curve("Multiplier, spread over states", ("train/multiplier_std",), "per unit"),
        ),
        ("multiplier/states", "pictures/multiplier_map"),
    ),
    Group(
        "Energy and behaviour",
        "Energy over a slice of actions at states of low, median and high multiplier; the final "
        "policy as a video.",
        (
            Curve("Energy of the policy", ("train/energy",), "scaled reward"),
            Curve("Entropy", ("train/entropy",), "nats"),
            Curve("Temperature", ("train/temperature", "train/entropy_coef"), "scaled reward"),
        ),
        ("pictures/energy", "eval/video"),
    ),
    Group(
        "Learning",
        "Losses tell whether a part diverges, not how good the policy is.",
        (
            Curve("Critics", ("loss/reward_critic", "loss/cost_critic"), "squared error"),
            Curve("Critic values", ("train/q_reward", "train/q_cost"), "discounted sum"),
            Curve("Policy", ("loss/policy", "loss/chain", "loss/score"), "loss"),
            Curve("Multiplier", ("loss/multiplier",), "loss"),
        ),
    ),
    Group(
        "Speed",
        "Depends on the machine.",
        (
            Curve("Environment", ("time/steps_per_second",), "steps per second"),
            Curve("Learning", ("time/updates_per_second",), "updates per second"),
        ),
    ),
)


def run(entity_project: str, runs: list[Path] | None, out: Path) -> int:
    """Create workspace and report in W&B, or write their specification to ``out``.

    Args:
        entity_project: ENTITY/PROJECT.
        runs: run directories to show; None shows all runs of the project.
        out: JSON file, written when not logged in.

    Raises:
        ConfigError: a name that is not ENTITY/PROJECT, a run that W&B does not know.
        UserError: wandb-workspaces is missing, or W&B refuses.
    """
    entity, project = split_name(entity_project)
    run_ids = None if runs is None else wandb_ids(runs)
    workspace, report = (
        build_workspace(entity, project, run_ids),
        build_report(entity, project, run_ids),
    )
    if login_source() is None:
        text = json.dumps(specification(workspace, report), indent=1, ensure_ascii=False)
        make_output_directory(out.parent)
        out.write_text(text + "\n", encoding="utf-8")
        print(f"not logged in to W&B (wandb login): the specification is in {out}")
        return 0
    # The report first: saving it creates a project that does not exist yet.
    for what, thing in (("report", report), ("workspace", workspace)):
        try:
            thing.save()
        except Exception as error:  # its client's own errors share no base
            reason = next(iter(str(error).splitlines()), "") or type(error).__name__
            raise UserError(
                f"W&B did not take the {what} for {entity_project}: {reason}"
            ) from error
        print(f"{what}: {thing.url}")
    return 0


def split_name(entity_project: str) -> tuple[str, str]:
    """Return entity and project of ENTITY/PROJECT."""
    entity, slash, project = entity_project.partition("/")
    if not (entity.strip() and slash and project.strip()) or "/" in project:
        raise ConfigError(f"--wandb must be ENTITY/PROJECT, got {entity_project!r}")
    return entity, project


def wandb_ids(runs: Sequence[Path]) -> list[str]:
    """Return the W&B ids of run directories.

    Raises:
        ConfigError: a directory that W&B never recorded.
    """
    ids = []
    for run_dir in runs:
        try:
            stored = json.loads((run_dir / "wandb.json").read_text(encoding="utf-8"))
            ids.append(str(stored["run_id"]))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ConfigError(
                f"{run_dir} was not recorded by W&B: it holds no readable wandb.json"
            ) from error
    return ids


def build_workspace(entity: str, project: str, run_ids: list[str] | None = None) -> Any:
    """Return the workspace: one section per group, runs grouped as they were filed."""
    ws = _package("workspaces")
    sections = [
        ws.Section(
            name=group.name,
            panels=_panels(group),
            is_open=index < 3,
            layout_settings=ws.SectionLayoutSettings(columns=3, rows=2),
        )
        for index, group in enumerate(GROUPS)
    ]
    return ws.Workspace(
        entity=entity,
        project=project,
        name=TITLE,
        sections=sections,
        settings=ws.WorkspaceSettings(x_axis=STEP, max_runs=50, ignore_outliers=False),
        runset_settings=ws.RunsetSettings(groupby=[ws.Metric("Group")], filters=_filter(run_ids)),
    )


def build_report(entity: str, project: str, run_ids: list[str] | None = None) -> Any:
    """Return the report: the plane of return and cost first, then a chapter per group."""
    wr = _package("reports.v2")

    def runset() -> Any:
        # Without a project of its own it takes the report's; naming it would ask the server now.
        return wr.Runset(name="runs", groupby=["group"], filters=_filter(run_ids))

    plane = wr.ScatterPlot(
        title="Return against cost, last evaluation",
        x=wr.SummaryMetric("eval/cost"),
        y=wr.SummaryMetric("eval/return"),
        layout=wr.Layout(w=24, h=10),
    )
    blocks: list[Any] = [
        wr.TableOfContents(),
        wr.H1("Return and cost"),
        wr.P(
            "Good policies lie left of the cost limit, as high as they can. Groups are the "
            "settings of a sweep; bands are one standard error over their seeds."
        ),
        wr.PanelGrid(runsets=[runset()], panels=[plane]),
    ]
    for group in GROUPS:
        blocks += [wr.H1(group.name), wr.P(group.text)]
        blocks.append(wr.PanelGrid(runsets=[runset()], panels=_panels(group)))
    return wr.Report(
        entity=entity,
        project=project,
        title=TITLE,
        description="Safe reinforcement learning with algd",
        blocks=blocks,
        width="fluid",
    )


def specification(workspace: Any, report: Any) -> dict[str, Any]:
    """Return both as the JSON that wandb-workspaces would send, identifiers made reproducible."""
    models = {"workspace": workspace._to_model(), "report": report._to_model()}
    plain = {
        name: json.loads(model.model_dump_json(by_alias=True, exclude_none=True))
        for name, model in models.items()
    }
    renamed: dict[str, str] = {}
    return _with_stable_ids(plain, renamed)


def _with_stable_ids(value: Any, renamed: dict[str, str]) -> Any:
    if isinstance(value, list):
        return [_with_stable_ids(item, renamed) for item in value]
    if not isinstance(value, dict):
        return value
    stable = {}
    for key, item in value.items():
        if key in _ID_KEYS and isinstance(item, str) and item:
            stable[key] = renamed.setdefault(item, f"algd-{len(renamed)}")
        else:
            stable[key] = _with_stable_ids(item, renamed)
    return stable


def _filter(run_ids: list[str] | None) -> str:
    return "" if run_ids is None else f"ID in {run_ids!r}"


def _panels(group: Group) -> list[Any]:
    wr = _package("reports.v2")
    panels: list[Any] = [
        wr.LinePlot(
            title=curve.title,
            x=STEP,
            y=list(curve.metrics),
            title_x="environment steps",
            title_y=curve.unit,
            groupby_rangefunc="stderr",
        )
        for curve in group.curves
    ]
    panels += [wr.MediaBrowser(title=key, media_keys=[key]) for key in group.media]
    for index, panel in enumerate(panels):
        panel.layout = wr.Layout(x=8 * (index % 3), y=6 * (index // 3), w=8, h=6)
    return panels


def _package(name: str) -> Any:
    """Import a module of wandb-workspaces, without what it says about its own future."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return import_module(f"wandb_workspaces.{name}")
    except ImportError as error:
        raise UserError(
            f"W&B dashboards need the package wandb-workspaces: {install_command('dashboard')}"
        ) from error
