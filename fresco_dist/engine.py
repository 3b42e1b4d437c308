"""The run as two graphs of tasks, to be read beside Algorithm 1 of the paper, and the loop that executes them.

Owns what depends on what. Where a task runs is decided in `dispatch`, what it does stands in `worker` and `denoiser`.
"""

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from fresco_dist.dispatch import Dispatcher, Graph, Place, Task
from fresco_dist.executor import Executor
from fresco_dist.plan import Plan
from fresco_dist.trace import TaskRecord

Observer = Callable[[TaskRecord], None]
Receiver = Callable[[Task, Any], None]


def denoising_graph(plan: Plan) -> Graph:
    """Encode, animate the thumbnail, then S steps of: predict all windows, fuse with the prior, step the canvas.

    The thumbnail's clip is needed by the first fusion only, so it is made while the first windows are predicted
    (METHOD 6.1).
    """
    graph = Graph()
    num_branches = len(plan.branches)
    load = graph.add(Task("load"), place=Place.EVERYWHERE)
    prompt = graph.add(Task("encode_prompt"), after=[load])
    prior = []
    if plan.prior:
        thumbnail = graph.add(Task("encode_thumbnail"), after=[load])
        cost = plan.prior.num_steps * num_branches
        prior = [graph.add(Task("prior"), inputs=[prompt, thumbnail], cost=cost)]
    num_tiles = sum(map(len, plan.canvas.encode_tiles))
    encoded = [graph.add(Task("encode", index=i), after=[load]) for i in range(num_tiles)]
    stepped = graph.add(Task("begin"), inputs=[prompt, *encoded], place=Place.EVERYWHERE)
    for step in range(plan.canvas.num_steps):
        predictions = [
            graph.add(Task("predict", step, window, branch), after=[stepped])
            for window in range(len(plan.canvas.windows))
            for branch in range(num_branches)
        ]
        inputs = prior if step == 0 else []
        stepped = graph.add(Task("commit", step), inputs=inputs, after=predictions, place=Place.EVERYWHERE, cost=0.0)
    graph.add(Task("collect"), after=[stepped])
    if plan.prior_tiles:
        graph.add(Task("decode_prior"), inputs=prior)
    return graph


def decoding_graph(plan: Plan) -> Graph:
    """Decode each VAE tile, blend it with the edges of the tiles above and to the left, take its pixels."""
    graph = Graph()
    num_columns = len(plan.decode_tiles[0])
    blended: dict[tuple[int, int], Task] = {}
    for row in range(len(plan.decode_tiles)):
        for column in range(num_columns):
            index = row * num_columns + column
            decode = graph.add(Task("decode", index=index))
            edges = [blended[key] for key in ((row - 1, column), (row, column - 1)) if key in blended]
            blend = graph.add(Task("blend", index=index), inputs=edges, place=decode, cost=0.0)
            blended[row, column] = blend
            graph.add(Task("pixels", index=index), after=[blend], place=decode, cost=0.0)
    return graph


def execute(graph: Graph, executor: Executor, observe: Observer, receivers: Mapping[str, Receiver]) -> None:
    """Run `graph` to its end: feed finished tasks to the dispatcher, its instructions to the executor.

    `observe` sees every record; `receivers` get the results of tasks by kind. A result is dropped once its receiver
    and every task that takes it have had it.
    """
    dispatcher = Dispatcher(graph, executor.num_workers)
    num_consumers = Counter(source for node in graph.nodes.values() for source in set(node.inputs))
    instructions = dispatcher.start()
    while not dispatcher.done:
        for instruction in instructions:
            executor.submit(instruction.worker, instruction.task, graph.nodes[instruction.task].inputs)
        record = executor.wait()
        observe(record)
        instructions = dispatcher.finished(record.worker, record.task)
        if not dispatcher.is_finished(record.task):
            continue  # it runs everywhere, and others have not ended yet
        if record.task.kind in receivers:
            receivers[record.task.kind](record.task, executor.result(record.task))
        num_consumers.subtract(set(graph.nodes[record.task].inputs))
        for task in {record.task, *graph.nodes[record.task].inputs}:
            if num_consumers[task] == 0:
                executor.release(task)
