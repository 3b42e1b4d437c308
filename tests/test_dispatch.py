"""The policy without processes: events in, exact instructions out, invariants on random graphs."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jobs import make_config
from test_plan import UHD, WAN

from fresco_dist.dispatch import Dispatcher, Graph, Instruction, Place, Task
from fresco_dist.engine import execute
from fresco_dist.plan import make_plan
from fresco_dist.simulate import SimulatedExecutor, simulate_denoising
from fresco_dist.trace import TaskRecord


def steps_graph(num_windows: int, num_steps: int, prior_cost: float = 0.0) -> Graph:
    """Predictions of a step, then a commit everywhere; a prior that the first commit needs."""
    graph = Graph()
    stepped = graph.add(Task("begin"), place=Place.EVERYWHERE)
    prior = [graph.add(Task("prior"), cost=prior_cost)] if prior_cost else []
    for step in range(num_steps):
        predictions = [graph.add(Task("predict", step, i), after=[stepped]) for i in range(num_windows)]
        inputs = prior if step == 0 else []
        stepped = graph.add(Task("commit", step), inputs=inputs, after=predictions, place=Place.EVERYWHERE)
    return graph


def simulate(graph: Graph, num_workers: int, duration_s) -> list[TaskRecord]:
    """Every task of `graph` in virtual time."""
    records: list[TaskRecord] = []
    execute(graph, SimulatedExecutor(num_workers, duration_s), records.append, {})
    return records


def test_first_instructions_fill_the_queues_two_deep_behind_what_runs_everywhere():
    graph = steps_graph(num_windows=5, num_steps=1)
    dispatcher = Dispatcher(graph, num_workers=2)
    begin = Task("begin")
    assert dispatcher.start() == [
        Instruction(0, begin),
        Instruction(1, begin),
        Instruction(0, Task("predict", 0, 0)),
        Instruction(1, Task("predict", 0, 1)),
    ]
    assert dispatcher.finished(0, begin) == [Instruction(0, Task("predict", 0, 2))]
    assert dispatcher.finished(1, begin) == [Instruction(1, Task("predict", 0, 3))]
    commits = [Instruction(0, Task("commit", 0)), Instruction(1, Task("commit", 0))]
    assert dispatcher.finished(1, Task("predict", 0, 1)) == [Instruction(1, Task("predict", 0, 4)), *commits]
    assert not dispatcher.done


def test_next_step_is_queued_behind_the_commit_also_on_a_worker_without_a_window():
    dispatcher = Dispatcher(steps_graph(num_windows=1, num_steps=2), num_workers=3)
    instructions = dispatcher.start()
    for worker in range(3):
        instructions += dispatcher.finished(worker, Task("begin"))
    everywhere = [[Instruction(w, task) for w in range(3)] for task in (Task("commit", 0), Task("commit", 1))]
    assert instructions[3:] == [
        Instruction(0, Task("predict", 0, 0)),
        *everywhere[0],
        Instruction(1, Task("predict", 1, 0)),
        *everywhere[1],
    ]


def test_nothing_is_queued_behind_the_prior_while_others_have_room():
    graph = steps_graph(num_windows=4, num_steps=1, prior_cost=6)
    dispatcher = Dispatcher(graph, num_workers=2)
    instructions = dispatcher.start() + dispatcher.finished(0, Task("begin")) + dispatcher.finished(1, Task("begin"))
    assert [instruction.task.kind for instruction in instructions if instruction.worker == 0] == ["begin", "prior"]
    assert [instruction.task.index for instruction in instructions if instruction.worker == 1] == [-1, 0, 1]


def test_pinned_task_goes_where_its_data_is():
    graph = Graph()
    first, second = graph.add(Task("decode", index=0)), graph.add(Task("decode", index=1))
    graph.add(Task("blend", index=1), inputs=[], place=second, cost=0.0)
    dispatcher = Dispatcher(graph, num_workers=2)
    assert dispatcher.start() == [Instruction(0, first), Instruction(1, second)]
    assert dispatcher.finished(1, second) == [Instruction(1, Task("blend", index=1))]


@pytest.mark.parametrize(("num_windows", "num_workers"), [(25, 8), (36, 8), (72, 8), (3, 5), (7, 1)])
def test_equal_tiles_take_no_longer_than_the_barrier_allows(num_windows, num_workers):
    graph = steps_graph(num_windows, num_steps=3)
    records = simulate(graph, num_workers, lambda worker, task: float(task.kind == "predict"))
    rounds = -(-num_windows // num_workers)
    assert max(record.end_s for record in records) == 3 * rounds


@st.composite
def random_graphs(draw) -> Graph:
    graph, tasks = Graph(), []
    for i in range(draw(st.integers(1, 30))):
        inputs = draw(st.lists(st.sampled_from(tasks), max_size=3, unique=True)) if tasks else []
        place = draw(st.sampled_from([Place.ANY, Place.ANY, Place.EVERYWHERE]))
        movable = [task for task in tasks if graph.nodes[task].place is not Place.EVERYWHERE]
        if movable and draw(st.booleans()):
            place = draw(st.sampled_from(movable))
        task = Task("commit" if place is Place.EVERYWHERE and draw(st.booleans()) else "work", index=i)
        needs = {"after" if task.kind == "commit" and draw(st.booleans()) else "inputs": inputs}
        tasks.append(graph.add(task, place=place, cost=draw(st.sampled_from([0.0, 1.0, 5.0])), **needs))
    return graph


@given(graph=random_graphs(), num_workers=st.integers(1, 9), seed=st.integers(0, 10**6))
def test_every_task_runs_once_after_what_it_needs(graph, num_workers, seed):
    generator = random.Random(seed)
    records = simulate(graph, num_workers, lambda worker, task: generator.choice([0.0, 1.0, 1.0, 10.0]))
    runs: dict[Task, list] = {task: [] for task in graph.nodes}
    for record in records:
        runs[record.task].append((record.start_s, record.end_s, record.worker))
    for task, node in graph.nodes.items():
        expected = num_workers if node.place is Place.EVERYWHERE else 1
        assert sorted(worker for _, _, worker in runs[task]) == sorted({worker for _, _, worker in runs[task]})
        assert len(runs[task]) == expected
        for needed in node.after:  # a collective ends after what it needs, any other task starts after it
            when = [end if task.kind == "commit" else start for start, end, _ in runs[task]]
            assert max(end for _, end, _ in runs[needed]) <= min(when) or graph.nodes[needed].place is Place.EVERYWHERE
            for _, end, worker in runs[needed]:
                assert all(end <= start for start, _, w in runs[task] if w == worker)
        if isinstance(node.place, Task):
            assert runs[task][0][2] == runs[node.place][0][2]


def test_graph_refuses_a_task_twice_and_an_unknown_predecessor():
    graph = Graph()
    graph.add(Task("a"))
    with pytest.raises(AssertionError, match="added twice"):
        graph.add(Task("a"))
    with pytest.raises(AssertionError, match="before"):
        graph.add(Task("b"), after=[Task("c")])


@pytest.mark.parametrize(
    ("window", "overlap", "num_windows", "num_workers", "expected"),
    [
        ("[720,1280]", 0.5, 25, 1, 1.0),
        ("[720,1280]", 0.5, 25, 8, 0.75),
        ("[480,832]", 0.25, 36, 8, 0.90),
        ("[480,832]", 0.5, 72, 8, 1.0),
        ("[480,832]", 0.5, 72, 16, 0.88),
        ("[480,832]", 0.5, 72, 64, 0.43),
    ],
)
def test_prior_overlaps_the_first_step_as_well_as_a_barrier_allows(window, overlap, num_windows, num_workers, expected):
    """METHOD 6, column "prior overlapped, barrier": simulated there by other code."""
    config = make_config(*UHD, f"tiles.window={window}", f"tiles.overlap={overlap}")
    plan = make_plan(config, WAN, (3840, 2160), num_workers, prior=True)
    assert len(plan.canvas.windows) == num_windows
    assert simulate_denoising(plan)["busy_fraction"] == pytest.approx(expected, abs=0.01)
