"""The schedule as a picture: a row per worker, a bar per task, idle time left white."""

from collections import defaultdict
from collections.abc import Sequence

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from fresco_dist.schedule.trace import TaskRecord

COLOURS = {"predict": "#4477aa", "prior": "#ee6677", "encode": "#ccbb44", "decode": "#228833", "commit": "#bbbbbb"}
BESIDE_COLOUR = "#aa3377"
OTHER_COLOUR = "#66ccee"
MAX_HEIGHT_IN = 40.0


def draw_timeline(records: Sequence[TaskRecord], title: str = "") -> Figure:
    """Task records as a figure; steps alternate in shade; what runs beside the forwards is a thin bar above."""
    workers = sorted({record.worker for record in records})
    top = max(record.task.level for record in records)
    origin_s = min(record.start_s for record in records)
    figure = Figure(figsize=(12, min(MAX_HEIGHT_IN, 1.5 + 0.3 * len(workers))), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot(xlabel="seconds", ylabel="worker", title=title)
    bars: dict[tuple, list[tuple[float, float]]] = defaultdict(list)  # those that look alike, which are drawn at once
    for record in records:
        colour = BESIDE_COLOUR if record.beside else COLOURS.get(_kind(record, top), OTHER_COLOUR)
        look = workers.index(record.worker), record.beside, colour, record.task.step % 2 == 1
        bars[look].append((record.start_s - origin_s, record.end_s - record.start_s))
    for (row, beside, colour, is_odd), spans in bars.items():
        axes.broken_barh(
            spans,
            (row - 0.45, 0.15) if beside else (row - 0.3, 0.7),
            facecolor=colour,
            alpha=0.65 if is_odd else 1.0,
            edgecolor="white",
            linewidth=0.0 if beside else 0.4,
        )
    axes.set_yticks(range(len(workers)), [str(worker) for worker in workers])
    axes.invert_yaxis()
    present = {_kind(record, top) for record in records}
    kinds = {"predict (steps alternate)" if k == "predict" else k: COLOURS[k] for k in COLOURS if k in present}
    beside = sorted({record.task.kind for record in records if record.beside})
    kinds |= {f"beside the forwards: {', '.join(beside)}": BESIDE_COLOUR} if beside else {}
    kinds |= {"other": OTHER_COLOUR}
    handles = [Patch(color=colour, label=kind) for kind, colour in kinds.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=4, frameon=False)
    return figure


def _kind(record: TaskRecord, top: int) -> str:
    """What it is drawn as: predictions below the last level, `top`, apart."""
    return "prior" if record.task.kind == "predict" and record.task.level < top else record.task.kind
