"""The Python interface in a notebook, as nbclient runs one: a bar while it runs, and the clip."""

import nbformat
from nbclient import NotebookClient

CELLS = (
    "import fresco_dist",
    'animate = fresco_dist.Animator("synthetic", cluster={"executor": "inprocess"}, **{"model.forward_s": 0})',
    'clip = animate("picture.png", prompt="the water flows", video={"num_frames": 5})\nclip',
    'animate.plan("picture.png")[:9]',
    'animate("nowhere.png")',
)


def test_notebook_shows_a_bar_the_clip_and_errors_in_one_line(picture_path):
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in CELLS])
    NotebookClient(
        notebook, timeout=120, allow_errors=True, resources={"metadata": {"path": str(picture_path.parent)}}
    ).execute()
    *_, called, planned, refused = (cell.outputs for cell in notebook.cells)
    shown = [output.data for output in called if output.output_type in ("display_data", "execute_result")]
    assert any("application/vnd.jupyter.widget-view+json" in data for data in shown)
    assert [data["text/html"][:6] for data in shown if "text/html" in data] == ["<video"]
    assert [output.data["text/plain"] for output in planned] == ["'image    '"]
    assert (refused[0].ename, refused[0].evalue) == (
        "InputError",
        "image: no such file: nowhere.png. Check the path.",
    )
