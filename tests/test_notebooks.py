"""The notebooks: stored clean, figures labelled; marked ``slow``, run from first cell to last."""

import ast
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
CELL_TIMEOUT = 600  # seconds
WRITES_FILE = "%%writefile "

each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def code_cells(path: Path) -> list[nbformat.NotebookNode]:
    return [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]


def python_of(path: Path) -> dict[str, ast.Module]:
    """Parsed code by cell id, without the cells that write a file."""
    cells = [cell for cell in code_cells(path) if not cell.source.startswith(WRITES_FILE)]
    return {cell.id: ast.parse(cell.source, filename=path.name) for cell in cells}


def calls_of(tree: ast.AST, name: str) -> list[ast.Call]:
    """Calls of a function ``name`` or a method ``.name``."""
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    return [call for call in calls if ast.unparse(call.func).rpartition(".")[2] == name]


def test_the_notebooks_are_those_announced() -> None:
    assert [path.stem for path in NOTEBOOKS] == [
        "01_quickstart",
        "02_two_islands",
        "03_energy_landscape",
        "04_multiplier_map",
        "05_your_environment",
        "06_statistics_and_dashboard",
        "07_export",
    ]


@each_notebook
def test_a_notebook_is_valid_and_stored_without_outputs(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert notebook.nbformat_minor >= 5
    assert notebook.metadata.kernelspec.name == "python3"
    for cell in code_cells(path):
        assert cell.outputs == []
        assert cell.execution_count is None
    ids = [cell.id for cell in notebook.cells]
    assert len(set(ids)) == len(ids)


@each_notebook
def test_a_notebook_begins_with_its_title_and_explains_itself(path: Path) -> None:
    cells = nbformat.read(path, as_version=4).cells
    assert cells[0].cell_type == "markdown"
    assert cells[0].source.startswith("# ")
    prose = [cell for cell in cells if cell.cell_type == "markdown"]
    assert len(prose) >= len(cells) / 3


@each_notebook
def test_files_are_written_into_the_temporary_directory(path: Path) -> None:
    for cell in code_cells(path):
        if cell.source.startswith("%"):
            assert cell.source.startswith(f"{WRITES_FILE}{{work}}/")
    for tree in python_of(path).values():
        lines = [call.args[0] for call in calls_of(tree, "run") if ast.unparse(call.func) == "run"]
        for line in lines:
            assert "{work}" in ast.unparse(line) or "{run_dir}" in ast.unparse(line)


@each_notebook
def test_every_figure_names_its_axes_with_units(path: Path) -> None:
    cells = python_of(path)
    drawing = {name: tree for name, tree in cells.items() if calls_of(tree, "subplots")}
    assert drawing
    for name, tree in drawing.items():
        for method in ("set_xlabel", "set_ylabel"):
            texts = [ast.unparse(call.args[0]) for call in calls_of(tree, method)]
            assert texts, f"{method} is missing in cell {name}"
            bare = [text for text in texts if "(" not in text and "environment steps" not in text]
            assert not bare, f"no unit in cell {name}: {bare}"


@pytest.mark.slow
@pytest.mark.timeout(1200)
@each_notebook
def test_a_notebook_runs_and_leaves_nothing_behind(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    NotebookClient(
        nbformat.read(path, as_version=4),
        timeout=CELL_TIMEOUT,
        kernel_name="python3",
        resources={"metadata": {"path": str(tmp_path)}},
    ).execute()
    assert list(tmp_path.iterdir()) == []
