"""The policy without processes: events in, exact instructions out, invariants on random graphs."""

import dataclasses
import random
import sys
from collections import Counter
from collections.abc import Callable
from functools import cache
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st
from make_jobs import keys_by_seed, keys_of, make_config
from test_plan import UHD, WAN

from fresco_dist.config import DispatchMode
from fresco_dist.schedule.dispatch import Dispatcher, Instruction
from fresco_dist.schedule.execute import Failure, WorkerError, execute
from fresco_dist.schedule.graph import Graph, Place, Task
from fresco_dist.schedule.keys import Keys, make_keys
from fresco_dist.schedule.plan import Plan, make_plan
from fresco_dist.schedule.simulate import SimulatedExecutor, simulate_run
from fresco_dist.schedule.tasks import open_canvases, run_graph
from fresco_dist.schedule.trace import TaskRecord, schedule_summary, span_s


def steps_graph(num_windows: int, num_steps: int, prior_cost: float = 0.0) -> Graph:
    """Predictions of a step, then a commit everywhere; a prior that the first commit needs."""
    graph = Graph()
    canvas = graph.add(Task("begin"), place=Place.EVERYWHERE, cost=0.0)
    prior = [graph.add(Task("prior"), cost=prior_cost)] if prior_cost else []
    for step in range(num_steps):
        states = {"canvas": canvas}
        predictions = [graph.add(Task("predict", step, i), states=states) for i in range(num_windows)]
        given = {"inputs": {"prior": prior if step == 0 else []}, "states": states}
        canvas = graph.add(Task("commit", step), **given, after=predictions, place=Place.EVERYWHERE, cost=0.0)
    return graph


TINY = ("video.num_frames=5", "video.max_size=[16384,16384]", "tiles.window=[64,64]", "sampler.num_steps=2")


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
        Instruction(0, Task("predict", 0, 2)),
        Instruction(1, Task("predict", 0, 3)),
    ]
    assert dispatcher.finished(0, begin) == dispatcher.finished(1, begin) == []
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


def test_pinned_tasks_follow_at_once_where_their_chain_began():
    graph = Graph()
    first, second = graph.add(Task("predict", 0, branch=0)), graph.add(Task("predict", 0, branch=1))
    fuse = graph.add(Task("fuse", 0), inputs={"of": [first, second]}, place=first, beside=False)
    followers = [
        graph.add(Task("predict", 1, branch=i), inputs={"of": [fuse]}, place=[first, second][i]) for i in (0, 1)
    ]
    tile = graph.add(Task("predict", 0, 0))
    dispatcher = Dispatcher(graph, num_workers=3)
    chain = [Instruction(0, first), Instruction(1, second), Instruction(0, fuse)]
    chain += [Instruction(0, followers[0]), Instruction(1, followers[1])]
    assert dispatcher.start() == [*chain, Instruction(2, tile)]


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
        movable = [task for task in tasks if graph.nodes[task].place is Place.ANY]
        if movable and draw(st.booleans()):
            place = draw(st.sampled_from(movable))
        task = Task("commit" if place is Place.EVERYWHERE and draw(st.booleans()) else "work", index=i)
        gathers = task.kind == "commit" and draw(st.booleans())
        everywhere = [needed for needed in inputs if graph.nodes[needed].place is Place.EVERYWHERE]
        rest = [needed for needed in inputs if needed not in everywhere]
        needs = {"after" if gathers else "inputs": rest if gathers else {"of": rest}}
        needs["states"] = {str(needed): needed for needed in everywhere}
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


class CheckedDispatcher(Dispatcher):
    """Compares what it has released, after each event, with what nobody can ask for any more."""

    def __init__(self, graph: Graph, num_workers: int) -> None:
        super().__init__(graph, num_workers)
        self.nodes, self.gone = graph.nodes, set()

    def take_released(self) -> list[Task]:
        released = super().take_released()
        assert self.gone.isdisjoint(released), "released twice"
        self.gone = {task for task in self.gone.union(released) if self.is_finished(task)}
        open_takers = [t for t in self.nodes if not self.is_finished(t) and t not in self.dropped]
        wanted = {taken for task in open_takers for taken in self.nodes[task].takes}
        assert self.gone == {task for task in self.nodes if self.is_finished(task) and task not in wanted}
        return released


class UnluckyExecutor(SimulatedExecutor):
    """Some tasks fail where they run first, or everywhere."""

    def __init__(self, num_workers: int, duration_s, losses, loses_results: bool, bad: dict[Task, int]) -> None:
        super().__init__(num_workers, duration_s, losses, loses_results)
        self._bad = bad  # how often each fails

    def wait(self):
        event = super().wait()
        if isinstance(event, Failure) or not self._bad.get(event.task):
            return event
        self._bad[event.task] -= 1
        self.held.discard(event.task)
        self._doom({event.task})
        return Failure(event.worker, event.task, WorkerError("bad luck"))


@cache
def sweep_graph() -> Graph:
    """Two points of a sweep on one canvas, which differ after the first step."""
    configs = [make_config(*TINY), make_config(*TINY, "fusion.cutoff=1", "fusion.schedule=constant")]
    plans = [make_plan(config, WAN, (192, 128), 1) for config in configs]
    return run_graph(plans, list(map(make_keys, plans)), DispatchMode.wavefront)


@given(data=st.data(), num_workers=st.integers(1, 5))
def test_results_are_released_when_nobody_can_ask_for_them(data, num_workers):
    """With workers that are lost, what they made too, and tasks that fail and are dropped."""
    graph = sweep_graph()
    losses = {worker: data.draw(st.floats(0.0, 20.0)) for worker in range(1, num_workers) if data.draw(st.booleans())}
    movable = [task for task, node in graph.nodes.items() if node.place is Place.ANY]
    bad = {task: data.draw(st.integers(1, 2)) for task in data.draw(st.lists(st.sampled_from(movable), max_size=3))}
    executor = UnluckyExecutor(num_workers, lambda worker, task: 1.0, losses, data.draw(st.booleans()), bad)
    with mock.patch("fresco_dist.schedule.execute.Dispatcher", CheckedDispatcher):
        execute(graph, executor, lambda record: None, {})


def num_calls(function: Callable[[], object]) -> int:
    """Calls of Python functions, and entries into generators, that a call leads to."""
    count = 0

    def profile(frame, event, argument) -> None:
        nonlocal count
        count += event == "call"

    sys.setprofile(profile)
    try:
        function()
    finally:
        sys.setprofile(None)
    return count


@pytest.mark.parametrize("mode", list(DispatchMode))
def test_effort_per_window_does_not_grow_with_the_windows(mode):
    """Graph and schedule of a row of 100 and of 400 windows: the same neighbours, so the same calls for each."""
    efforts = []
    for num_windows in (100, 400):
        plan = make_plan(make_config(*TINY), WAN, (32 * (num_windows + 1), 64), 4)
        assert len(plan.canvas.steps[0].grid.windows) == num_windows
        efforts.append(num_calls(lambda plan=plan: simulate_run(plan, mode)) / num_windows)
    assert efforts[1] < 1.1 * efforts[0], efforts


def test_graph_shares_equal_tasks_and_refuses_different_ones_and_an_unknown_predecessor():
    graph = Graph()
    graph.add(Task("a"))
    graph.add(Task("a"))
    assert len(graph.nodes) == 1
    with pytest.raises(AssertionError, match="added twice"):
        graph.add(Task("a"), place=Place.EVERYWHERE)
    with pytest.raises(AssertionError, match="before"):
        graph.add(Task("b"), after=[Task("c")])


@pytest.mark.parametrize(
    ("window", "overlap", "num_windows", "num_workers", "barrier", "wavefront"),
    [
        ((720, 1280), 0.5, 25, 1, 1.0, 1.0),
        ((720, 1280), 0.5, 25, 8, 0.75, 0.89),
        ((480, 832), 0.25, 36, 8, 0.90, 0.96),
        ((480, 832), 0.5, 72, 8, 1.0, 1.0),
        ((480, 832), 0.5, 72, 16, 0.88, 0.94),
        ((480, 832), 0.5, 72, 64, 0.43, 0.57),
    ],
)
def test_schedules_are_as_dense_as_others_found(window, overlap, num_windows, num_workers, barrier, wavefront):
    """METHOD 6, columns "prior overlapped, barrier" and "no barrier": simulated there by other code.

    There a forward of the prior costs as much as one of a window; here, at the same area, up to 4% less.
    """
    plan = uhd_plan(*windows_of(*window), f"tiles.overlap={overlap}", num_workers=num_workers)
    assert len(plan.canvas.steps[0].grid.windows) == num_windows
    assert simulate_run(plan, DispatchMode.allreduce)["busy_fraction"] == pytest.approx(barrier, abs=0.011)
    assert simulate_run(plan, DispatchMode.wavefront)["busy_fraction"] == pytest.approx(wavefront, abs=0.011)


def windows_of(height: int, width: int) -> list[str]:
    """Windows of a size in pixels, and a thumbnail of the same area."""
    return [f"tiles.window=[{height},{width}]", f"prior.area={height * width}"]


def uhd_plan(*overrides: str, num_workers: int = 8) -> Plan:
    """A UHD clip of 6 steps, the prior at the first."""
    return make_plan(make_config(*UHD, *overrides), WAN, (3840, 2160), num_workers)


def test_one_job_fills_the_idle_time_of_another():
    """Four jobs, 72 windows each, on 64 workers: alone each leaves 43% idle. Their priors leave at least 4% idle."""
    plan = uhd_plan(*windows_of(480, 832), num_workers=64)
    graph = run_graph([plan] * 3, keys_by_seed(plan, 3), DispatchMode.wavefront)
    records = simulate(graph, 64, lambda worker, task: graph.nodes[task].cost * (task.traits.forward))
    assert schedule_summary(records, 64, graph)["makespan_s"] <= 29  # 28.5: after 6 for the priors, 1440 / 64


def sweep_of_six(graph: Graph, keys: list[Keys], num_workers: int) -> tuple[float, float, int]:
    """When the first video and the last are done, and how many canvases are open at once."""
    records = simulate(graph, num_workers, lambda worker, task: graph.nodes[task].cost * task.traits.forward)
    begins = [Task("begin", level=1, of=of_job.levels[1].base) for of_job in keys]
    collects = [Task("collect", level=1, of=of_job.levels[1].last) for of_job in keys]
    ends = [max(r.end_s for r in records if r.task == collect) for collect in collects]
    last = [[t for t, n in graph.nodes.items() if begin in n.takes] for begin in begins]
    seen, most = Counter(), 0
    for record in records:
        seen[record.task] += 1
        begun = [job for job in range(6) if seen[begins[job]]]
        most = max(most, sum(any(not seen[task] for task in last[job]) for job in begun))
    return ends[0], max(ends), most


@pytest.mark.parametrize(
    ("num_workers", "mode", "first"),
    [(8, DispatchMode.wavefront, 24), (16, DispatchMode.wavefront, 27), (8, DispatchMode.allreduce, 66)],
)
def test_first_video_of_a_sweep_is_done_early_and_few_canvases_are_open(num_workers, mode, first):
    """Six jobs of 25 windows, 156 forwards each, against all of them at once."""
    plan = uhd_plan(num_workers=num_workers)
    keys = keys_by_seed(plan, 6)
    graph = run_graph([plan] * 6, keys, mode)
    first_s, last_s, num_open = sweep_of_six(graph, keys, num_workers)
    assert first_s == first
    assert num_open == open_canvases(plan, mode, [(job, job) for job in range(6)]) == graph.num_together + 1 < 6
    graph.num_together = 6
    at_once_s, all_s, _ = sweep_of_six(graph, keys, num_workers)
    assert at_once_s > 0.8 * all_s and last_s <= 1.01 * all_s


def test_slow_worker_gets_fewer_tiles_and_no_last_one():
    plan = uhd_plan(*windows_of(480, 832), num_workers=4)
    graph = run_graph([plan], [make_keys(plan)], DispatchMode.wavefront)
    speeds = (1.0, 1.0, 1.0, 0.25)
    records = simulate(graph, 4, lambda w, task: graph.nodes[task].cost / speeds[w] * (task.traits.forward))
    tiles = [record for record in records if record.task.kind == "predict" and record.task.level == plan.top]
    shares = [sum(record.worker == worker for record in tiles) for worker in range(4)]
    assert 20 <= shares[3] < min(shares[:3]) / 3
    assert schedule_summary(records, 4, graph)["makespan_s"] < 1.03 * 438 / sum(speeds)


def test_guidance_branches_of_the_prior_run_side_by_side():
    plan = uhd_plan("sampler.guidance_scale=3")
    graph = run_graph([plan], [make_keys(plan)], DispatchMode.wavefront)
    records = simulate(graph, 8, lambda worker, task: graph.nodes[task].cost * (task.traits.forward))
    prior = [record for record in records if record.task.kind == "predict" and record.task.level == 0]
    assert max(record.end_s for record in prior) == 6.0
    (first,), (second,) = ({record.worker for record in prior if record.task.branch == i} for i in (0, 1))
    assert first != second


def test_cell_steps_as_soon_as_its_windows_are_in():
    """Three windows in a row, one worker: cell 1 needs windows 0 and 1 only, and window 0 then only cells 0 and 1."""
    config = make_config("video.num_frames=5", "tiles.window=[64,128]", "sampler.num_steps=2", "fusion=multidiffusion")
    plan = make_plan(config, WAN, (256, 64), 1)
    keys = make_keys(plan)
    graph = run_graph([plan], [keys], DispatchMode.wavefront)

    def task(kind: str, step: int, index: int) -> Task:
        of = keys.levels[1].canvas[step + (kind == "fuse")]
        return Task(kind, step, index, -1 if kind == "fuse" else 0, level=1, of=of)

    fuse, predict = graph.nodes[task("fuse", 0, 1)], graph.nodes[task("predict", 1, 0)]
    assert fuse.inputs["predictions"] == (task("predict", 0, 0), task("predict", 0, 1))
    assert predict.sources == (task("fuse", 0, 0), task("fuse", 0, 1))
    assert graph.nodes[task("fuse", 1, 1)].inputs["before"] == (task("fuse", 0, 1),)
    dispatcher = Dispatcher(graph, num_workers=1)
    queue, order = dispatcher.start(), []
    while not dispatcher.done:
        queued = queue.pop(0).task
        order.append(queued)
        queue += dispatcher.finished(0, queued)
    assert order.index(task("fuse", 0, 1)) < order.index(task("fuse", 0, 2))


def test_work_of_a_lost_worker_goes_to_the_others():
    graph = Graph()
    for i in range(4):
        graph.add(Task("predict", 0, i))
    dispatcher = Dispatcher(graph, num_workers=2)
    given = dispatcher.start()
    assert [instruction.worker for instruction in given] == [0, 1, 0, 1]
    assert dispatcher.finished(1, given[1].task) == []
    assert dispatcher.lost(0) == [Instruction(1, given[0].task)]
    assert dispatcher.finished(1, given[3].task) == [Instruction(1, given[2].task)]


SMALL = make_config("video.num_frames=5", "tiles.window=[64,64]")


@pytest.mark.parametrize("mode", list(DispatchMode))
def test_nothing_begins_before_all_texts_and_pictures_are_encoded(mode):
    """Where they are: one worker runs all of it in a row, and has dropped its encoders before its first canvas."""
    spec = dataclasses.replace(WAN, embeds_pictures=True)
    configs = [make_config(*TINY, "sampler.guidance_scale=3", f"prompt={text}", "seed=1") for text in ("a", "b", "a")]
    configs[2].seed = 2
    plans = [make_plan(config, spec, (192, 128), 3) for config in configs]
    keys = list(map(keys_of, configs, plans))
    graph = run_graph(plans, keys, mode)
    texts = [task for task in graph.nodes if task.kind == "encode_text"]
    pictures = [task for task in graph.nodes if task.kind == "embed_picture"]
    assert [graph.job_of(task) for task in texts] == [0, 0, 1]  # the negative prompt is the same, and the third
    assert [task.level for task in pictures] == [0, 1]  # of the one picture
    records = simulate(graph, 3, lambda worker, task: 1.0)
    encoding = [record for record in records if record.task in {*texts, *pictures}]
    (worker,) = {record.worker for record in encoding}
    assert span_s(encoding) == len(encoding)
    begun_s = min(record.start_s for record in records if record.task.kind == "begin" and record.worker == worker)
    assert max(record.end_s for record in encoding) <= begun_s
