"""The evaluation command: what it runs, what it leaves out, and that it goes on; inside this process."""

import json
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import pytest
from conftest import TINY_RUN, make_picture, merged, run_here
from PIL import Image
from sam3_model import OVERRIDES, make_sam3

from fresco_dist import launch
from fresco_dist.evaluate import __main__ as command
from fresco_dist.evaluate.methods import compose_methods, on_picture, read_methods
from fresco_dist.jobs import keeper, pool_run
from fresco_dist.jobs.claim import Claim
from fresco_dist.report.comparison import read_comparison
from fresco_dist.settings.schema import checked_config

COMPARISONS = sorted(path.stem for path in (Path(launch.CONFIG_FOLDER) / "comparison").iterdir())


@pytest.fixture
def dataset(tmp_path) -> Path:
    """Three pictures, one of them with a seed of its own, and a file that is none."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    rows = []
    for seed, name in enumerate(("mural", "map", "wall")):
        make_picture(96, 48, seed).save(folder / f"{name}.png")
        rows.append({"file_name": f"{name}.png", "text": "the figures walk", "seed": 7 if name == "map" else None})
    half = Image.new("L", (96, 48))
    half.paste(255, (0, 0, 48, 48))
    half.save(folder / "half.png")
    (folder / "torn.png").write_bytes((folder / "mural.png").read_bytes()[:100])
    rows.insert(1, {"file_name": "torn.png", "text": "x"})
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


@pytest.fixture
def evaluate(tmp_path, model_path, dataset, capfd):
    """Run the command; exit code, stdout and stderr."""
    own = tmp_path / "conf" / "comparison"
    own.mkdir(parents=True)
    (own / "mine.yaml").write_text("methods: {plain: [fusion=multidiffusion], held: [fusion=fresco, fusion.cutoff=1]}")
    defaults = ["cluster.executor=inprocess", f"hydra.sweep.dir={tmp_path / 'out'}", f"dataset={dataset}"]
    defaults += [f"model.path={model_path}", "compare=mine", *TINY_RUN[:-1]]

    def run(*overrides: object) -> SimpleNamespace:
        capfd.readouterr()
        arguments = ["--config-dir", str(tmp_path / "conf"), *merged(overrides, defaults)]
        with mock.patch.object(launch, "main", command.main):
            returncode = run_here(arguments)
        out, err = capfd.readouterr()
        return SimpleNamespace(returncode=returncode, stdout=out, stderr=err, folder=run.folder)

    run.folder = tmp_path / "out"
    return run


def test_every_method_runs_on_every_picture_that_can_be_read(evaluate):
    done = evaluate()
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    torn = "metadata.jsonl line 2 (torn.png)"
    assert f"warning   {torn} is left out: image: " in done.stdout and "pictures  3 of 3" in done.stdout
    found = read_comparison(done.folder)
    assert found.reference == "plain" and found.complete == ["mural", "map", "wall"]
    assert found.left_out.keys() == {torn} and "cannot be decoded" in found.left_out[torn]
    configs = {(m, p): point.run["config"] for m, of in found.runs.items() for p, point in of.items()}
    assert {key: config["fusion"]["method"] for key, config in configs.items()} == {
        (method, picture): recipe
        for method, recipe in (("plain", "multidiffusion"), ("held", "fresco"))
        for picture in ("mural", "map", "wall")
    }
    assert [configs["held", picture]["seed"] for picture in ("mural", "map", "wall")] == [0, 7, 0]
    assert configs["held", "wall"]["fusion"]["cutoff"] == 1 and configs["held", "wall"]["metrics"]
    assert configs["held", "wall"]["prompt"] == "the figures walk"
    assert {point.metrics.keys() >= {"sharpness"} for of in found.runs.values() for point in of.values()} == {True}
    assert list((done.folder / "report").iterdir()) and not (done.folder / "store").exists()


def test_evaluation_that_was_killed_goes_on_from_what_is_stored(evaluate, monkeypatch):
    monkeypatch.setattr(command, "RUNS_TOGETHER", 2)  # a picture at a time
    monkeypatch.setattr(command, "REPORT_INTERVAL_S", 0.0)
    monkeypatch.setattr(keeper, "SHARE", 1e9)  # checkpoints at every step

    class Killed(BaseException):
        pass

    execute, parts = pool_run.execute, []

    def until_the_second(graph, executor, observe, *others):
        parts.append(graph)

        def watch(record) -> None:
            observe(record)
            if len(parts) == 2 and record.task.kind == "fuse" and record.task.step == 2 and record.task.level == 1:
                raise Killed

        return execute(graph, executor, watch, *others)

    with monkeypatch.context() as patch:
        patch.setattr(pool_run, "execute", until_the_second)
        with pytest.raises(Killed):
            evaluate()
    folder = evaluate.folder
    assert read_comparison(folder).complete == ["mural"] and (folder / "report").is_dir()
    assert list((folder / "store").glob("*/canvas-*"))
    before = (folder / "held" / "mural" / "run.json").stat().st_mtime_ns
    done = evaluate()
    assert done.returncode == 0 and read_comparison(folder).complete == ["mural", "map", "wall"]
    assert (folder / "held" / "mural" / "run.json").stat().st_mtime_ns == before and "already" in done.stdout
    resumed = read_comparison(folder).runs["held"]["map"].run["starts"]
    assert resumed[-1]["stored_steps"] and resumed[-1]["forwards_left"] < resumed[0]["forwards_left"]
    assert not (folder / "store").exists()


def test_evaluation_has_its_folder_alone(evaluate):
    evaluate.folder.mkdir()
    with Claim(evaluate.folder):
        done = evaluate()
    assert done.returncode == 2 and "hydra.run.dir must be a folder that no other run is using" in done.stderr


def test_report_is_written_though_the_last_part_fails(evaluate, dataset, monkeypatch):
    monkeypatch.setattr(command, "RUNS_TOGETHER", 2)
    make_picture(8, 4).save(dataset / "wall.png")
    done = evaluate()
    assert done.returncode == 2
    assert "Left out: plain/wall: " in (done.folder / "report" / "comparison.md").read_text()


def test_map_of_a_picture_goes_before_one_that_is_made(evaluate, dataset, tmp_path):
    rows = [json.loads(line) for line in (dataset / "metadata.jsonl").read_text().splitlines()]
    rows[0]["fusion.activity_map"] = "half.png"
    (dataset / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    done = evaluate("compare=table3", "sampler.num_steps=1")
    assert done.returncode == 0
    assert "warning   regional is left out: 2 of 3 pictures have no fusion.activity_map" in done.stdout
    sam3 = make_sam3(tmp_path / "sam3")
    made = ["fusion.activity_map=sam3", f"sam3.path={sam3}", *OVERRIDES]
    done = evaluate("compare=table3", "sampler.num_steps=1", *made)
    assert done.returncode == 0, done.stderr
    runs = read_comparison(done.folder).runs["regional"]
    assert {picture: "activity" in point.run for picture, point in runs.items()} == {
        "mural": False, "map": True, "wall": True,
    }  # fmt: skip


def test_column_that_sets_what_is_compared_is_refused(evaluate, dataset):
    row = {"file_name": "wall.png", "text": "x", "fusion.cutoff": 0.5}
    (dataset / "metadata.jsonl").write_text(json.dumps(row))
    done = evaluate()
    assert done.returncode == 2 and "its column fusion.cutoff sets what the methods are compared by" in done.stderr


def test_run_that_fails_is_left_out_and_the_others_go_on(evaluate, dataset):
    make_picture(8, 4).save(dataset / "map.png")  # smaller than a window: refused for all methods alike
    done = evaluate()
    assert done.returncode == 2
    found = read_comparison(done.folder)
    assert found.complete == ["mural", "wall"]
    assert {name for name in found.left_out if "/" in name} == {"plain/map", "held/map"}
    assert done.stderr.count("error: ") == 1  # said once, not for each method
    (dataset / "map.png").write_bytes((dataset / "wall.png").read_bytes())
    done = evaluate()
    assert done.returncode == 0 and read_comparison(done.folder).complete == ["mural", "map", "wall"]
    make_picture(8, 4).save(dataset / "map.png")  # what lies in its folder now is of another picture
    assert evaluate().returncode == 2
    assert read_comparison(done.folder).complete == ["mural", "wall"]


def test_method_that_needs_maps_is_left_out_where_no_picture_has_one(evaluate, dataset):
    done = evaluate("compare=table3", "sampler.num_steps=1")
    assert done.returncode == 0 and "warning   regional is left out: 3 of 3 pictures have no " in done.stdout
    found = read_comparison(done.folder)
    assert list(found.runs) == ["none", "constant", "cosine", "gated"] and "regional" in found.left_out
    rows = [json.loads(line) for line in (dataset / "metadata.jsonl").read_text().splitlines()]
    rows = [row | {"fusion.activity_map": "half.png"} for row in rows]
    (dataset / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    done = evaluate("compare=table3", "sampler.num_steps=1")
    assert done.returncode == 0, done.stderr
    found = read_comparison(done.folder)
    assert list(found.runs) == ["none", "constant", "cosine", "gated", "regional"] and len(found.complete) == 3
    assert "prior_distance_active" in found.runs["none"]["wall"].metrics


def test_plan_only_prints_each_plan_once_and_leaves_nothing(evaluate, monkeypatch):
    monkeypatch.setattr(command, "RUNS_TOGETHER", 2)
    done = evaluate("plan_only=true")
    assert done.returncode == 0 and done.stdout.count("canvas    ") == 2  # one of each method, not of each picture
    assert list(done.folder.iterdir()) == []


BAD = [
    (["dataset=null"], "dataset must be a folder of pictures"),
    (["dataset="], "dataset must be a folder of pictures"),
    (["dataset=/nowhere"], "dataset must be a folder; got /nowhere"),
    (["compare=table9"], "compare must be one of figure7, mine, table1, table2, table3; got table9"),
    (["reference=best"], "reference must be one of plain, held; got best"),
    (["fusion.cutof=1"], "fusion.cutof: there is no such key. Did you mean fusion.cutoff?"),
    (["video.fps=0"], "video.fps must be in [1, 240]; got 0"),
]


@pytest.mark.parametrize("overrides, expected", BAD)
def test_bad_input_is_one_line(evaluate, overrides, expected):
    done = evaluate(*overrides)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {expected}") and done.stderr.count("\n") == 1, done.stderr


MISTAKES = {
    "methods: {}": "methods must be a list of overrides for each name; got {}",
    "methods: {a: fusion=fresco}": "methods.a must be a list of overrides, as on the command line; got fusion=fresco",
    "methods: {report: []}": "methods must be named by letters, digits",
    "methods: {a/b: []}": "methods must be named by letters, digits",
    "{methods: {a: []}, referense: a}": "must be methods and reference alone; got referense",
    "methods: {a: [video.max_size=[48,48]]}: b": "comparison/mine.yaml cannot be read",
    "methods: {a: [plan_only=true]}": "methods.a must be an override in which methods may differ; got plan_only=true",
    "methods: {a: [cluster.num_workers=2]}": "methods.a must be an override in which methods may differ",
    "{methods: {a: [seed=1]}, reference: b}": "reference must be one of a; got b",
    "{methods: {a: []}, reference: b}": "reference must be one of a; got b",
}


@pytest.mark.parametrize("text", MISTAKES)
def test_mistake_in_a_comparison_is_one_line(evaluate, tmp_path, text):
    (tmp_path / "conf" / "comparison" / "mine.yaml").write_text(text)
    done = evaluate()
    assert done.returncode == 2 and MISTAKES[text] in done.stderr and done.stderr.count("\n") == 1, done.stderr


def test_texts_are_those_that_were_typed(evaluate, dataset, tmp_path):
    """On the command line, in a comparison, in columns, and in the folder's name."""
    methods = (
        "{a: [fusion=multidiffusion, 'negative_prompt=it''s (1), ${5} x'], b: [fusion=fresco, negative_prompt=1.10]}"
    )
    (tmp_path / "conf" / "comparison" / "2024_05.yaml").write_text(f"methods: {methods}")
    dataset = dataset.rename(tmp_path / "Bilder (1), é")
    rows = (dataset / "metadata.jsonl").read_text().splitlines()
    first = json.loads(rows[0]) | {"text": "\\${5} 水 \\\\ it's"}
    (dataset / "metadata.jsonl").write_text(json.dumps(first))
    done = evaluate(
        f"dataset={dataset}", "compare=2024_05", "image_last=${image}", f"hydra.sweep.dir={tmp_path}/2024_05 (é)"
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    runs = {path.parts[-3]: json.loads(path.read_text()) for path in tmp_path.glob("2024_05 (é)/*/*/run.json")}
    negative = {method: run["config"]["negative_prompt"] for method, run in runs.items()}
    assert negative == {"a": "it's (1), ${5} x", "b": "1.10"}
    configs = [run["config"] for run in runs.values()]
    assert {config["prompt"] for config in configs} == {first["text"]}
    assert {config["image_last"] for config in configs} == {str(dataset / "mural.png")}


@pytest.mark.parametrize("asked", ["-m", "--multi", "hydra.mode=MULTIRUN", "++hydra.mode=MULTIRUN"])
def test_sweep_is_refused(evaluate, asked):
    done = evaluate(asked)
    assert done.returncode == 2 and done.stderr.startswith("error: -m is not for fresco_dist.evaluate")
    assert not done.folder.exists()


@pytest.mark.parametrize("name", COMPARISONS)
def test_comparison_of_the_package_is_composed(name):
    """Every method of it, with what a picture sets: the schema's checks included."""
    launch.register(command.KEYS)
    with launch.hydra.initialize_config_dir(launch.CONFIG_FOLDER, version_base="1.3"):
        methods = read_methods(name, None)
        configs = compose_methods(methods, ["metrics=true"])
        assert methods.reference in configs and list(configs) == list(methods.overrides)
        for cfg in configs.values():
            checked_config(on_picture(cfg, {"image": "a=b (1).png", "prompt": "${5}", "fusion.activity_map": "m.png"}))
