"""The policy without processes: events in, exact instructions out, invariants on random graphs."""

import heapq
import random

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


def simulate(graph: Graph, num_workers: int, duration) -> list[tuple[float, float, int, Task]]:
    """Run in virtual time: (start, end, worker, task) in the order of giving; a worker runs its queue in order."""
    dispatcher = Dispatcher(graph, num_workers)
    queues: list[list[Task]] = [[] for _ in range(num_workers)]
    free_at = [0.0] * num_workers
    events: list[tuple[float, int, int, Task]] = []  # end, sequence number, worker, task
    history = []
    now = 0.0

    def give(instructions: list[Instruction]) -> None:
        for instruction in instructions:
            queues[instruction.worker].append(instruction.task)
            start = max(now, free_at[instruction.worker])
            end = start + duration(instruction.task)
            free_at[instruction.worker] = end
            heapq.heappush(events, (end, len(history), instruction.worker, instruction.task))
            history.append((start, end, instruction.worker, instruction.task))

    give(dispatcher.start())
    while not dispatcher.done:
        assert events, "deadlock: work is left and nothing runs"
        now, _, worker, task = heapq.heappop(events)
        assert queues[worker].pop(0) == task
        give(dispatcher.finished(worker, task))
    return history


def test_first_instructions_enter_every_queue_and_then_fill_two_deep():
    dispatcher = Dispatcher(steps_graph(num_windows=5, num_steps=1), num_workers=2)
    begin = Task("begin")
    assert dispatcher.start() == [Instruction(0, begin), Instruction(1, begin)]
    assert dispatcher.finished(0, begin) == []  # the other worker has not begun
    assert dispatcher.finished(1, begin) == [
        Instruction(0, Task("predict", 0, 0)),
        Instruction(1, Task("predict", 0, 1)),
        Instruction(0, Task("predict", 0, 2)),
        Instruction(1, Task("predict", 0, 3)),
    ]
    assert dispatcher.finished(1, Task("predict", 0, 1)) == [Instruction(1, Task("predict", 0, 4))]
    assert dispatcher.finished(0, Task("predict", 0, 0)) == []


def test_commit_runs_everywhere_also_on_a_worker_without_a_window():
    dispatcher = Dispatcher(steps_graph(num_windows=1, num_steps=1), num_workers=3)
    dispatcher.start()
    for worker in range(3):
        instructions = dispatcher.finished(worker, Task("begin"))
    assert instructions == [Instruction(0, Task("predict", 0, 0))]
    assert dispatcher.finished(0, Task("predict", 0, 0)) == [Instruction(w, Task("commit", 0)) for w in range(3)]


def test_nothing_is_queued_behind_the_prior_while_others_have_room():
    graph = steps_graph(num_windows=4, num_steps=1, prior_cost=6)
    dispatcher = Dispatcher(graph, num_workers=2)
    dispatcher.start()
    dispatcher.finished(0, Task("begin"))
    given_to = [instruction.worker for instruction in dispatcher.finished(1, Task("begin"))]
    assert set(given_to) == {1} and len(given_to) == 2


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
        if tasks and draw(st.booleans()):
            place = draw(st.sampled_from(tasks))
        task = Task(draw(st.sampled_from("ab")), index=i)
        tasks.append(graph.add(task, inputs=inputs, place=place, cost=draw(st.sampled_from([0.0, 1.0, 5.0]))))
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
        for needed in node.after:
            assert max(end for _, end, _ in runs[needed]) <= min(start for start, _, _ in runs[task])
        if isinstance(node.place, Task) and graph.nodes[node.place].place is Place.ANY:
            assert runs[task][0][2] == runs[node.place][0][2]


def test_graph_refuses_a_task_twice_and_an_unknown_predecessor():
    graph = Graph()
    graph.add(Task("a"))
    with pytest.raises(AssertionError, match="added twice"):
        graph.add(Task("a"))
    with pytest.raises(AssertionError, match="before"):
        graph.add(Task("b"), after=[Task("c")])
