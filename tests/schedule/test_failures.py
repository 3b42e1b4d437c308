"""Tasks that fail, here or everywhere: what is tried again, what is dropped, and what that leaves behind."""

import random
from functools import cache

import pytest
from hypothesis import given
from hypothesis import strategies as st
from make_jobs import keys_by_seed, keys_of
from make_jobs import make_config as compose
from test_dispatch import SMALL, TINY, UnluckyExecutor, steps_graph
from test_plan import WAN

from fresco_dist.config import DispatchMode
from fresco_dist.jobs.job import tasks_of
from fresco_dist.schedule.dispatch import Dispatcher, Instruction
from fresco_dist.schedule.execute import execute
from fresco_dist.schedule.graph import Graph, Place, Task
from fresco_dist.schedule.keys import make_keys
from fresco_dist.schedule.plan import make_plan
from fresco_dist.schedule.tasks import run_graph
from fresco_dist.schedule.trace import TaskRecord

make_config = cache(compose)


def test_failed_task_is_tried_elsewhere_and_then_takes_what_needs_it_along():
    graph = Graph()
    bad, good = graph.add(Task("predict", 0, 0)), graph.add(Task("predict", 0, 1))
    useless = graph.add(Task("predict", 0, 2))
    graph.add(Task("collect", of="1"), inputs={"of": [bad, useless]})
    graph.add(Task("collect", of="2"), inputs={"of": [good]})
    dispatcher = Dispatcher(graph, num_workers=2)
    assert dispatcher.start() == [Instruction(0, bad), Instruction(1, good), Instruction(0, useless)]
    assert dispatcher.failed(0, bad) == [Instruction(1, bad)]
    collect = Instruction(1, Task("collect", of="2"))  # where its input is
    assert dispatcher.finished(1, good) == [collect]
    dispatcher.failed(1, bad)
    assert dispatcher.dropped == {bad, useless, Task("collect", of="1")}
    dispatcher.finished(0, useless)
    assert not dispatcher.done
    dispatcher.finished(collect.worker, collect.task)
    assert dispatcher.done


def test_pinned_task_that_fails_is_tried_elsewhere_and_then_dropped():
    graph = Graph()
    root = graph.add(Task("predict", 0))
    follower = graph.add(Task("predict", 1), inputs={"of": [root]}, place=root)
    dispatcher = Dispatcher(graph, num_workers=2)
    assert dispatcher.start() == [Instruction(0, root), Instruction(0, follower)]
    dispatcher.finished(0, root)
    assert dispatcher.failed(0, follower) == [Instruction(1, follower)]
    dispatcher.failed(1, follower)
    assert dispatcher.dropped == {follower} and dispatcher.done


@given(data=st.data())
def test_followers_of_a_failed_task_are_handed_out_once_more_in_whatever_order_they_fail(data):
    """Not behind a task that is still to fail: thousands of tasks would fail that way, each for another."""
    graph = Graph()
    chain = [graph.add(Task("predict", 0))]
    for step in range(1, 10):
        chain.append(graph.add(Task("predict", step), inputs={"of": chain[-1:]}, place=chain[-1]))
    dispatcher = Dispatcher(graph, num_workers=2)
    assert dispatcher.start() == [Instruction(0, task) for task in chain]
    instructions = dispatcher.failed(0, chain[0])
    for task in data.draw(st.permutations(chain[1:])):
        instructions += dispatcher.failed(0, task, consequence=True)
    assert instructions == [Instruction(1, task) for task in chain]


def test_followers_of_a_task_that_is_lost_wait_for_those_before_them():
    """They were given to the other worker as well, which will not get what they need."""
    graph = Graph()
    root = graph.add(Task("predict", 0))
    second = graph.add(Task("commit", 0), inputs={"of": [root]}, place=Place.EVERYWHERE)
    third = graph.add(Task("commit", 1), inputs={"of": [second]}, place=Place.EVERYWHERE)
    dispatcher = Dispatcher(graph, num_workers=2)
    assert dispatcher.start()[0] == Instruction(0, root)
    assert dispatcher.lost(0) == [Instruction(1, root)]
    assert dispatcher.failed(1, third, consequence=True) == []
    assert dispatcher.failed(1, second, consequence=True) == [Instruction(1, second), Instruction(1, third)]


def test_commit_that_all_survivors_have_finished_is_not_done_again():
    graph = steps_graph(num_windows=2, num_steps=1)
    dispatcher = Dispatcher(graph, num_workers=2)
    predictions = [i for i in dispatcher.start() if i.task.kind == "predict"]
    for worker in (0, 1):
        dispatcher.finished(worker, Task("begin"))
        dispatcher.finished(worker, predictions[worker].task)
    dispatcher.finished(1, Task("commit", 0))
    assert dispatcher.lost(0) == [] and dispatcher.done


def test_commit_that_is_done_again_takes_what_was_built_on_it_along():
    graph = steps_graph(num_windows=2, num_steps=2)
    dispatcher = Dispatcher(graph, num_workers=2)
    dispatcher.start()
    for worker in (0, 1):
        dispatcher.finished(worker, Task("begin"))
        dispatcher.finished(worker, Task("predict", 0, worker))
    dispatcher.finished(1, Task("commit", 0))
    dispatcher.finished(1, Task("predict", 1, 1))  # queued behind it
    dispatcher.withdraw()
    assert not dispatcher.is_finished(Task("predict", 1, 1)) and dispatcher.is_finished(Task("predict", 0, 1))
    assert [i.task for i in dispatcher.start()][:2] == [Task("commit", 0)] * 2


@pytest.mark.parametrize("mode", list(DispatchMode))
def test_job_that_fails_leaves_the_others(mode):
    """Two jobs on one canvas, as in a sweep."""
    plan = make_plan(SMALL, WAN, (128, 64), 2)
    keys = keys_by_seed(plan, 2)
    graph = run_graph([plan, plan], keys, mode)
    dispatcher = Dispatcher(graph, num_workers=1)
    dispatcher.start()
    dispatcher.failed(0, Task("predict", 0, 0, 0, 1, keys[1].levels[1].canvas[0]))
    assert tasks_of(graph, keys[0]).isdisjoint(dispatcher.dropped)
    assert Task("collect", level=1, of=keys[1].levels[1].last) in dispatcher.dropped


def test_canvas_ends_also_when_one_of_its_jobs_has_failed():
    """Or its memory would stay with the workers, and another one would begin in its place."""
    plan = make_plan(make_config(*TINY), WAN, (128, 64), 1)
    plans = [plan, make_plan(make_config(*TINY, "fusion.cutoff=1", "fusion.schedule=constant"), WAN, (128, 64), 1)]
    keys = list(map(make_keys, plans))
    assert keys[0].levels[1].canvas[:2] == keys[1].levels[1].canvas[:2]
    graph, (_, level) = run_graph(plans, keys, DispatchMode.wavefront), keys[1].levels
    dispatcher = Dispatcher(graph, num_workers=1)
    queue, released = [instruction.task for instruction in dispatcher.start()], set()
    while queue:
        task = queue.pop(0)
        react = dispatcher.failed if task == Task("fuse", 1, 0, level=1, of=level.last) else dispatcher.finished
        queue += [instruction.task for instruction in react(0, task)]
        released.update(dispatcher.take_released())
    assert dispatcher.done and Task("collect", level=1, of=level.last) in dispatcher.dropped
    assert {Task("begin", level=i, of=keys[0].levels[i].base) for i in (0, 1)} <= released


def test_state_that_only_some_workers_could_make_is_forgotten_by_these():
    """A canvas that has failed: its begin is dropped with what needs it, and no memory stays behind."""
    graph = Graph()
    begin = graph.add(Task("begin"), place=Place.EVERYWHERE)
    predict = graph.add(Task("predict", 0, 0), states={"level": begin})
    dispatcher = Dispatcher(graph, num_workers=2)
    dispatcher.start()
    dispatcher.finished(0, begin)
    dispatcher.failed(1, begin)
    assert dispatcher.dropped == {begin, predict}
    assert dispatcher.take_released() == [begin]


@pytest.mark.parametrize("mode", list(DispatchMode))
def test_text_that_cannot_be_encoded_fails_its_own_job_alone(mode):
    """Also the first of the sweep, where the others are to be encoded, too."""
    configs = [make_config(*TINY, f"prompt={text}", f"seed={seed}") for seed, text in enumerate("ab")]
    plans = [make_plan(config, WAN, (192, 128), 1) for config in configs]
    keys = list(map(keys_of, configs, plans))
    graph = run_graph(plans, keys, mode)
    bad = {Task("encode_text", of=keys[0].texts[0]): 2}
    records: list[TaskRecord] = []
    dropped = execute(graph, UnluckyExecutor(2, lambda worker, task: 1.0, {}, False, bad), records.append, {})
    collects = [Task("collect", level=1, of=of_job.levels[1].last) for of_job in keys]
    assert {graph.job_of(task) for task in dropped} == {0} and collects[0] in dropped
    assert collects[1] in {record.task for record in records}


def test_canvas_that_could_not_begin_everywhere_leaves_its_place_to_the_next():
    """Three pictures, one at a time and one more: two begin on one worker alone, and later than they have failed."""
    graph = Graph(jobs={str(job): job for job in range(3)})
    begins = [graph.add(Task("begin", of=str(job)), place=Place.EVERYWHERE) for job in range(3)]
    for begin in begins:
        graph.add(Task("predict", 0, 0, of=begin.of), states={"level": begin})
    dispatcher = Dispatcher(graph, num_workers=2)
    first, second, third = begins
    assert {instruction.task for instruction in dispatcher.start() if instruction.task in begins} == {first, second}
    given = [*dispatcher.failed(0, first), *dispatcher.failed(0, second), *dispatcher.finished(1, first)]
    given += dispatcher.finished(1, second)
    assert [instruction for instruction in given if instruction.task in begins] == [
        Instruction(0, third),
        Instruction(1, third),
    ]


def test_task_that_failed_on_the_worker_it_is_pinned_to_is_done_there_again_if_no_other_is_left():
    graph = Graph()
    first = graph.add(Task("encode_text", index=0))
    second = graph.add(Task("encode_text", index=1), place=first)
    dispatcher = Dispatcher(graph, num_workers=2)
    assert dispatcher.start() == [Instruction(0, first), Instruction(0, second)]
    dispatcher.failed(0, first)
    dispatcher.failed(0, second)
    assert Instruction(0, second) in [*dispatcher.lost(1), *dispatcher.finished(0, first)]


def test_no_worker_is_kept_free_for_a_pinned_task_that_has_been_dropped():
    graph = Graph()
    first, bad = graph.add(Task("predict", 0, 0)), graph.add(Task("predict", 0, 1))
    root = graph.add(Task("predict", 1, 0), inputs={"of": [first]})
    graph.add(Task("predict", 2, 0), inputs={"of": [bad]}, place=root)
    last = graph.add(Task("predict", 1, 1), inputs={"of": [first]})
    dispatcher = Dispatcher(graph, num_workers=1)
    assert dispatcher.start() == [Instruction(0, first), Instruction(0, bad)]
    assert dispatcher.failed(0, bad) == []
    assert dispatcher.finished(0, first) == [Instruction(0, root), Instruction(0, last)]


@pytest.mark.parametrize("mode", list(DispatchMode))
@given(data=st.data(), num_workers=st.integers(1, 4))
def test_tasks_that_fail_take_along_what_needs_them_and_nothing_else(mode, data, num_workers):
    """Any tasks of a sweep, here or everywhere, also with losses: the run ends, and all other videos are made."""
    seed, strength, scale = st.integers(1, 2), st.integers(0, 2), st.sampled_from([1, 3])
    values = data.draw(st.lists(st.tuples(st.sampled_from("ab"), seed, strength, scale), min_size=1, max_size=4))
    keys = ("prompt", "seed", "fusion.prior_strength", "sampler.guidance_scale")
    configs = [make_config(*TINY, *(f"{key}={value}" for key, value in zip(keys, point))) for point in values]
    plans = [make_plan(config, WAN, (192, 128), 2) for config in configs]
    keys = list(map(keys_of, configs, plans))
    graph = run_graph(plans, keys, mode)
    bad = st.dictionaries(st.sampled_from([*graph.nodes][1:]), st.integers(1, 2), min_size=1, max_size=3)
    failing = data.draw(bad)
    losses = {worker: data.draw(st.floats(0.0, 20.0)) for worker in range(1, num_workers) if data.draw(st.booleans())}
    generator = random.Random(data.draw(st.integers(0, 99)))
    executor = UnluckyExecutor(
        num_workers,
        lambda worker, task: generator.choice([0.5, 1.0, 3.0]),
        losses,
        data.draw(st.booleans()),
        {**failing},
    )
    records: list[TaskRecord] = []
    dropped = execute(graph, executor, records.append, {})
    ran = {record.task for record in records}
    for of_job in keys:
        needed = tasks_of(graph, of_job)
        if needed.isdisjoint(failing):
            assert needed.isdisjoint(dropped)
            assert {task for task in needed if task.kind in ("collect", "blend")} <= ran


def test_what_was_built_on_a_canvas_that_failed_elsewhere_is_dropped_with_it():
    """A worker has predicted already when another cannot begin, and a third has not: nothing waits for ever."""
    graph = steps_graph(num_windows=2, num_steps=1)
    dispatcher = Dispatcher(graph, num_workers=3)
    dispatcher.start()
    dispatcher.finished(0, Task("begin"))
    dispatcher.finished(0, Task("predict", 0, 0))
    dispatcher.failed(1, Task("begin"))
    dispatcher.withdraw()
    assert dispatcher.done and dispatcher.dropped == set(graph.nodes)
