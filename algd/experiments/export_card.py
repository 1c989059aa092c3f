"""The model card of an exported policy: what it is, what it cost over many episodes, how to use it.

In: a loaded policy and the episodes it was run for. Out: statistics, and a README.md with the
metadata that the Hugging Face hub reads.
"""

import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from algd.analysis.statistics import proportion_interval
from algd.experiments.yaml_files import write_yaml
from algd.training.evaluation import EvaluationResult, Mode
from algd.training.load import LoadedPolicy

if TYPE_CHECKING:
    from algd.experiments.export_onnx import OnnxReport

_NORMAL_95 = 1.959963984540054  # standard normal quantile of a two-sided 95 % interval
_TAIL = 0.1  # share of the worst episodes in the tail mean


@dataclass(frozen=True)
class CostStatistics:
    """Undiscounted sums per episode over ``episodes`` evaluation episodes.

    cost_tail: mean cost of the worst tenth of the episodes. within_limit: share of episodes whose
    cost is at most ``cost_limit``, with its 95 % Wilson interval. cost_half_width: of the 95 %
    normal interval of the mean cost.
    """

    episodes: int
    mode: Mode
    seed: int
    cost_limit: float
    return_mean: float
    return_std: float
    length_mean: float
    cost_mean: float
    cost_half_width: float
    cost_std: float
    cost_median: float
    cost_p90: float
    cost_tail: float
    cost_max: float
    within_limit: float
    within_limit_low: float
    within_limit_high: float


def cost_statistics(
    result: EvaluationResult, *, cost_limit: float, mode: Mode, seed: int
) -> CostStatistics:
    """Summarise evaluation episodes, cost first."""
    costs, returns = np.array(result.costs), np.array(result.returns)
    count = len(costs)
    worst = np.sort(costs)[-math.ceil(_TAIL * count) :]
    within, low, high = proportion_interval(int((costs <= cost_limit).sum()), count)
    deviation = float(costs.std(ddof=1)) if count > 1 else 0.0
    return CostStatistics(
        episodes=count,
        mode=mode,
        seed=seed,
        cost_limit=cost_limit,
        return_mean=float(returns.mean()),
        return_std=float(returns.std(ddof=1)) if count > 1 else 0.0,
        length_mean=float(np.mean(result.lengths)),
        cost_mean=float(costs.mean()),
        cost_half_width=_NORMAL_95 * deviation / math.sqrt(count),
        cost_std=deviation,
        cost_median=float(np.median(costs)),
        cost_p90=float(np.quantile(costs, 0.9)),
        cost_tail=float(worst.mean()),
        cost_max=float(costs.max()),
        within_limit=within,
        within_limit_low=low,
        within_limit_high=high,
    )


def model_card(
    policy: LoadedPolicy,
    statistics: CostStatistics,
    graphs: "list[OnnxReport]",
    *,
    name: str,
    repo: str | None = None,
) -> str:
    """Return README.md; ``name`` is its title, ``repo`` its place on the hub (OWNER/NAME)."""
    parts = [
        "---",
        write_yaml(_metadata(policy, statistics, name)).strip(),
        "---",
        "",
        f"# {name}",
        "",
        _introduction(policy),
        "",
        _cost_section(statistics),
        "",
        _usage_section(policy, graphs, repo, statistics.mode),
    ]
    return "\n".join(parts)


def _metadata(policy: LoadedPolicy, statistics: CostStatistics, name: str) -> dict[str, Any]:
    env_id = policy.config.env.id
    metrics = [
        {"type": "mean_reward", "name": "mean return", "value": statistics.return_mean},
        {"type": "mean_cost", "name": "mean cost", "value": statistics.cost_mean},
        {
            "type": "within_cost_limit",
            "name": f"share of episodes with cost <= {statistics.cost_limit:g}",
            "value": statistics.within_limit,
        },
    ]
    return {
        "library_name": "algd",
        "pipeline_tag": "reinforcement-learning",
        "tags": [
            "reinforcement-learning",
            "safe-reinforcement-learning",
            f"{policy.config.policy.kind}-policy",
            env_id,
        ],
        "model-index": [
            {
                "name": name,
                "results": [
                    {
                        "task": {"type": "reinforcement-learning", "name": "control under a cost"},
                        "dataset": {"type": env_id, "name": env_id},
                        "metrics": metrics,
                    }
                ],
            }
        ],
    }


def _introduction(policy: LoadedPolicy) -> str:
    config = policy.config
    kept = (
        " It is the best of the run's evaluations that kept the limit; the episodes below are "
        "others than those."
        if policy.which == "best_safe"
        else ""
    )
    return (
        f"A policy for `{config.env.id}` that was trained to keep the cost of an episode at or "
        f"below {config.constraint.cost_limit:g}: {config.policy.kind} policy, "
        f"{config.multiplier.kind} multiplier, {policy.env_step:,} environment steps, "
        f"seed {config.seed}.{kept} Everything that determines the run is in `config.yaml`."
    )


def _cost_section(statistics: CostStatistics) -> str:
    s = asdict(statistics)
    limit = f"{statistics.cost_limit:g}"
    rows = [
        ("return, mean ± standard deviation", f"{s['return_mean']:.2f} ± {s['return_std']:.2f}"),
        ("cost, mean (95 % interval)", f"{s['cost_mean']:.2f} ± {s['cost_half_width']:.2f}"),
        ("cost, standard deviation", f"{s['cost_std']:.2f}"),
        ("cost, median", f"{s['cost_median']:.2f}"),
        ("cost, 90 % quantile", f"{s['cost_p90']:.2f}"),
        ("cost, mean of the worst tenth", f"{s['cost_tail']:.2f}"),
        ("cost, largest", f"{s['cost_max']:.2f}"),
        (
            f"episodes with cost <= {limit} (95 % interval)",
            f"{s['within_limit']:.0%} ({s['within_limit_low']:.0%} to "
            f"{s['within_limit_high']:.0%})",
        ),
        ("steps per episode, mean", f"{s['length_mean']:.0f}"),
    ]
    table = "\n".join(f"| {name} | {value} |" for name, value in rows)
    return (
        f"## Cost and return\n\n{statistics.episodes} episodes, {statistics.mode} actions, "
        f"evaluation seed {statistics.seed}, cost limit {limit}. Sums over an episode, not "
        f"discounted.\n\n| quantity | value |\n|---|---|\n{table}\n\n"
        "These numbers are measured in simulation, on start states that training did not see. "
        "They are no guarantee for any single episode, nor for another environment or another "
        "version of its physics."
    )


def _usage_section(
    policy: LoadedPolicy, graphs: "list[OnnxReport]", repo: str | None, mode: Mode
) -> str:
    """Return how to act as the episodes of the card did, and otherwise."""
    action = policy.agent.action_dim
    where = "the path of this directory" if repo is None else f"hf://{repo}"
    sampled: dict[Mode, str] = {"deterministic": "", "stochastic": ", deterministic=False"}
    other: Mode = "stochastic" if mode == "deterministic" else "deterministic"
    lines = [
        "## Use",
        "",
        f"Observations: {policy.obs_dim} float32 numbers as the environment gives them "
        "(normalisation is part of the policy). "
        f"Actions: {action} numbers in the environment's own box.",
        "",
        "```python",
        "import algd",
        "",
        f'policy = algd.load("{where}")',
        f"action = policy.act(obs{sampled[mode]})  # (O,) or (N, O); as in the episodes above",
        f"action = policy.act(obs{sampled[other]})  # {other} actions, which they do not tell of",
        "```",
    ]
    if not graphs:
        return "\n".join([*lines, ""])
    lines += ["", "Without Python, or without torch, by ONNX:", ""]
    lines += ["| graph | inputs, each with a leading batch | largest difference to torch |"]
    lines += ["|---|---|---|"]
    for graph in graphs:
        inputs = ", ".join(f"`{key}` {shape}" for key, shape in graph.inputs.items())
        lines.append(
            f"| `{graph.file}` | {inputs} | {graph.max_difference:.1e} of half the action range "
            f"over {graph.observations:,} observations |"
        )
    return "\n".join([*lines, "", "`noise` holds independent standard normals.", ""])
