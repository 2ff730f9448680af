"""Run the notebooks and keep what they show: python -m notebooks.execute [NAME ...]

A notebook is written as NAME.py, in the percent format of jupytext, which diffs well. This runs it
from the folder of the notebooks and writes NAME.ipynb beside it, with its figures and without
anything that changes from one run to the next (times, machine, counts).
"""

import os
import shutil
import sys
from pathlib import Path

import jupytext
import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode

HERE = Path(__file__).parent
NAMES = sorted(path.stem for path in HERE.glob("[0-9]_*.py"))
SECONDS = 180  # that a notebook may take


def executed(name: str, folder: Path = HERE) -> NotebookNode:
    """The notebook with its outputs; raises CellExecutionError for a cell that fails."""
    notebook = jupytext.read(HERE / f"{name}.py")
    client = NotebookClient(
        notebook, timeout=SECONDS, kernel_name="python3", resources={"metadata": {"path": folder}}
    )
    # A program that started this one may have chosen where figures go: streamlit does.
    kernel = {name: value for name, value in os.environ.items() if name != "MPLBACKEND"}
    return stripped(client.execute(env=kernel))


def stripped(notebook: NotebookNode) -> NotebookNode:
    """The same, cells numbered in order and only what a reader sees."""
    notebook.metadata = NotebookNode(
        kernelspec={"display_name": "Python 3", "language": "python", "name": "python3"},
        language_info={"name": "python"},
    )
    for number, cell in enumerate(notebook.cells):
        cell.id, cell.metadata = f"cell-{number}", NotebookNode()
        if cell.cell_type == "code":
            cell.execution_count = None
            # what goes to stderr is of the machine: bars, and warnings with its paths
            cell.outputs = [out for out in cell.outputs if out.get("name") != "stderr"]
            for output in cell.outputs:
                output.pop("execution_count", None)
                if output.output_type == "execute_result":
                    output.output_type = "display_data"
    return notebook


def main(names: list[str]) -> None:
    shutil.rmtree(HERE.parent / "runs" / "demo-shapes", ignore_errors=True)  # may be an older one
    for name in names or NAMES:
        nbformat.write(executed(name), HERE / f"{name}.ipynb")
        print(f"{name}.ipynb")


if __name__ == "__main__":
    main(sys.argv[1:])
