"""The policy without processes: events in, exact instructions out, invariants on random graphs."""

import heapq
import random
from collections import deque

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fresco_dist.dispatch import Dispatcher, Graph, Instruction, Place, Task


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


def simulate(graph: Graph, num_workers: int, duration, collectives=("commit",)) -> list[tuple[float, float, int, Task]]:
    """Run in virtual time: (start, end, worker, task). A worker runs its queue in order; the head waits for its inputs.

    A collective ends everywhere at once, when all workers have entered it.
    """
    dispatcher = Dispatcher(graph, num_workers)
    queues: list[deque[Task]] = [deque() for _ in range(num_workers)]
    running: list[tuple[float, int]] = []  # end, worker
    started: list[float | None] = [None] * num_workers
    ended: dict[Task, float] = {}
    history = []
    now = 0.0

    def give(instructions: list[Instruction]) -> None:
        for instruction in instructions:
            queues[instruction.worker].append(instruction.task)

    def start_heads() -> None:
        for worker, queue in enumerate(queues):
            if queue and started[worker] is None and all(i in ended for i in graph.nodes[queue[0]].inputs):
                started[worker] = now
                if queue[0].kind not in collectives:
                    heapq.heappush(running, (now + duration(queue[0]), worker))
        entered = [queue[0] if queue and started[w] is not None else None for w, queue in enumerate(queues)]
        if entered[0] and entered[0].kind in collectives and len(set(entered)) == 1:
            for worker in range(num_workers):
                if not any(w == worker for _, w in running):
                    heapq.heappush(running, (now, worker))

    give(dispatcher.start())
    while not dispatcher.done:
        start_heads()
        assert running, "deadlock: work is left and nothing runs"
        now, worker = heapq.heappop(running)
        task = queues[worker].popleft()
        history.append((started[worker], now, worker, task))
        started[worker] = None
        instructions = dispatcher.finished(worker, task)
        if dispatcher.is_finished(task):
            ended[task] = now
        give(instructions)
    return history


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
    history = simulate(graph, num_workers, lambda task: float(task.kind == "predict"))
    rounds = -(-num_windows // num_workers)
    assert max(end for _, end, _, _ in history) == 3 * rounds


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
    history = simulate(graph, num_workers, lambda task: generator.choice([0.0, 1.0, 1.0, 10.0]))
    runs: dict[Task, list] = {task: [] for task in graph.nodes}
    for start, end, worker, task in history:
        runs[task].append((start, end, worker))
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
