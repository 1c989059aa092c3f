"""The tables of a comparison: terminal, CSV, LaTeX.

In: comparisons. Out: text. An interval is written `estimate [low, high]`; what is undefined is a
dash, and a step that is never reached is `never`.
"""

import csv
import io
import math
from collections.abc import Sequence

from algd.analysis.statistics import Interval
from algd.experiments.compare import ALL_ENVIRONMENTS, QUANTITIES, RETURN, Comparison, Quantity, Row
from algd.experiments.compare_groups import cut_label, keys_inside_environments
from algd.experiments.config_values import ABSENT, shown

_TERMINAL_KEYS = (
    "return",
    "cost",
    "p_safe",
    "return_given_safe",
    "training_violations",
    "first_safe_step",
    "p_better",
)
_KEYS_OVER_ALL = ("normalised_cost", "p_safe", "training_violations", "p_better")
_LATEX_KEYS = ("return", "cost", "normalised_cost", "p_safe", "return_given_safe", "p_better")
_LATEX_HEADINGS = {
    "return": "Return",
    "cost": "Cost",
    "normalised_cost": "Cost / limit",
    "p_safe": r"$P(\mathrm{cost} \le \mathrm{limit})$",
    "return_given_safe": "Return given safe",
    "p_better": "$P$(better)",
}
_LATEX_ESCAPES = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "–": "--",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
} | {letter: f"\\{letter}" for letter in "&%$#_{}"}
_LONGEST_LABEL = 44


def terminal_table(comparison: Comparison) -> str:
    """Return the table of one environment for a terminal, with the full labels below."""
    headings, cells = headings_and_cells(comparison)
    labels = [row.group.label for row in comparison.rows]
    short = {
        label: cut_label(label, number, _LONGEST_LABEL)
        for number, label in enumerate(labels, start=1)
    }
    lines = [["group", *headings]]
    lines += [[text, *row] for text, row in zip(short.values(), cells, strict=True)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    table = [
        "  ".join(
            [line[0].ljust(widths[0])]
            + [cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True)]
        ).rstrip()
        for line in lines
    ]
    limits = sorted({one.cost_limit for row in comparison.rows for one in row.summaries})
    title = (
        f"{comparison.env_id}, cost limit {', '.join(f'{limit:g}' for limit in limits)}"
        f"{_baseline_note(comparison)}"
    )
    cut = [f"  {text} = {label}" for label, text in short.items() if text != label]
    if comparison.env_id == ALL_ENVIRONMENTS:
        cut.append(
            "  means over the environments, which count alike; cost/limit: cost over its limit"
        )
    return "\n".join([title, *table, *cut])


def headings_and_cells(comparison: Comparison) -> tuple[list[str], list[list[str]]]:
    """Return the terminal's columns but for the labels, and their text row by row."""
    quantities = _terminal_quantities(comparison)
    headings = ["runs", *(_heading(quantity, comparison) for quantity in quantities)]
    cells = [
        [
            str(len(row.group.runs)),
            *(_interval(row.values[one.key], one.digits) for one in quantities),
        ]
        for row in comparison.rows
    ]
    return headings, cells


def legend(comparison: Comparison) -> str:
    """Return what the columns mean, once for all environments."""
    lines = [
        f"{_heading(quantity, comparison)}: {_named(quantity.meaning, comparison)}"
        for quantity in _terminal_quantities(comparison)
    ]
    return "\n".join([*lines, "[low, high]: 95 % intervals over runs"])


def _baseline_note(comparison: Comparison) -> str:
    """Say what P(better) refers to, where there is something to compare."""
    if len(comparison.rows) < 2 or comparison.score != RETURN:
        return ""
    known = any(row.group.label == comparison.baseline for row in comparison.rows)
    return f"; baseline: {comparison.baseline}{'' if known else ' (no run of it here)'}"


def _terminal_quantities(comparison: Comparison) -> list[Quantity]:
    is_over_all = comparison.env_id == ALL_ENVIRONMENTS
    keys = _KEYS_OVER_ALL if is_over_all else _TERMINAL_KEYS
    return [quantity for quantity in _quantities(comparison) if quantity.key in keys]


def _quantities(comparison: Comparison) -> list[Quantity]:
    """Return the columns of a comparison: none says what is better by another score."""
    is_return = comparison.score == RETURN
    return [quantity for quantity in QUANTITIES if is_return or quantity.key != "p_better"]


def csv_table(comparisons: Sequence[Comparison]) -> str:
    """Return all quantities: for each key three columns, KEY, KEY_low, KEY_high."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    ends = [f"{quantity.key}{end}" for quantity in QUANTITIES for end in ("", "_low", "_high")]
    writer.writerow(["environment", "group", "baseline", "metric", "runs", "seeds", *ends])
    for comparison in comparisons:
        for row in comparison.rows:
            seeds = " ".join(str(run.seed) for run in row.group.runs)
            numbers = [
                "" if math.isnan(number) else repr(float(number))
                for quantity in QUANTITIES
                for number in row.values[quantity.key]
            ]
            about = [comparison.env_id, row.group.label, comparison.baseline, comparison.score]
            writer.writerow([*map(_inert, about), len(row.group.runs), seeds, *numbers])
    return text.getvalue()


def runs_table(comparisons: Sequence[Comparison]) -> str:
    """Return one CSV line per run: its group, its summary, and the keys in which runs differ."""
    rows = [row for comparison in comparisons for row in comparison.rows]
    by_path = {
        run.path: (run, row.group.label, summary)
        for row in reversed(rows)  # the environment's own row wins over the one over all
        for run, summary in zip(row.group.runs, row.summaries, strict=True)
    }
    members = sorted(by_path.values(), key=lambda member: (member[0].env_id, member[0].name))
    keys = keys_inside_environments([run for run, _, _ in members])
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    names = list(vars(members[0][2]))
    writer.writerow(["run", "environment", "group", "seed", *names, *keys])
    for run, label, summary in members:
        numbers = ["" if value != value else value for value in vars(summary).values()]
        values = [_inert(shown(run.config, key)) for key in keys]
        writer.writerow(
            [_inert(run.name), _inert(run.env_id), _inert(label), run.seed, *numbers, *values]
        )
    return text.getvalue()


def latex_table(comparisons: Sequence[Comparison]) -> str:
    """Return a tabular for the package booktabs; intervals stand behind their estimates."""
    first = comparisons[0]
    quantities = [quantity for quantity in _quantities(first) if quantity.key in _LATEX_KEYS]
    headings = [_latex_heading(quantity, first) for quantity in quantities]
    lines = [
        "% needs \\usepackage{booktabs}; 95 % intervals over runs in brackets",
        f"\\begin{{tabular}}{{lr{'r' * len(quantities)}}}",
        "\\toprule",
        " & ".join(["Group", "Runs", *headings]) + r" \\",
    ]
    for comparison in comparisons:
        title = _latex(f"{comparison.env_id}{_baseline_note(comparison)}")
        lines += [
            "\\midrule",
            f"\\multicolumn{{{len(quantities) + 2}}}{{l}}{{\\emph{{{title}}}}} \\\\",
        ]
        lines += [_latex_row(row, quantities) for row in comparison.rows]
    return "\n".join([*lines, "\\bottomrule", "\\end{tabular}", ""])


def _latex_row(row: Row, quantities: Sequence[Quantity]) -> str:
    cells = [_latex(row.group.label), str(len(row.group.runs))]
    for quantity in quantities:
        text = _interval(row.values[quantity.key], quantity.digits)
        estimate, bracket, ends = text.partition(" [")
        cell = f"${estimate}$" + (f" {{\\scriptsize $[{ends}$}}" if bracket else "")
        cells.append("--" if text == ABSENT else cell)
    return " & ".join(cells) + r" \\"


def _latex(text: str) -> str:
    return "".join(_LATEX_ESCAPES.get(letter, letter) for letter in text)


def _heading(quantity: Quantity, comparison: Comparison) -> str:
    return _named(quantity.heading, comparison)


def _latex_heading(quantity: Quantity, comparison: Comparison) -> str:
    heading = _LATEX_HEADINGS[quantity.key]
    is_return = comparison.score == RETURN
    return heading if is_return else heading.replace("Return", _latex(comparison.score))


def _named(text: str, comparison: Comparison) -> str:
    """Return text about the return with the name of what is compared in its place."""
    return text if comparison.score == RETURN else text.replace("return", comparison.score)


def _interval(interval: Interval, digits: int) -> str:
    estimate, low, high = interval
    if math.isnan(estimate):
        return ABSENT
    if math.isinf(estimate):
        return "never"
    text = f"{estimate:.{digits}f}"
    return text if math.isnan(low) else f"{text} [{low:.{digits}f}, {high:.{digits}f}]"


def _inert(text: str) -> str:
    """Return text that a spreadsheet does not take for a formula."""
    return f"'{text}" if text.startswith(("=", "+", "-", "@")) else text
