"""What is typed as KEY=TEXT arrives as that text, or one line says how it is to be typed."""

import re
import shlex
from itertools import product

import pytest
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import assume, example, given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from fresco_dist.config import InputError
from fresco_dist.settings.overrides import for_hydra, split
from fresco_dist.settings.schema import CONFIG_FOLDER, compose_config
from fresco_dist.settings.texts import literal

PIECES = [
    "${5}",
    "${",
    "}",
    "\\",
    '"',
    "'",
    ", ",
    ",",
    "[",
    "]",
    "{",
    "}",
    "(",
    ")",
    "=",
    ":",
    "~",
    "水",
    "🐟",
    "\n",
    " ",
]
PIECES += ["null", "true", "1_000", "1e3", "0x1", "it's", "$", "%", "#", "@", "|", "&", ";", "!", "?", "*", "\t", "é"]
TEXTS = st.one_of(
    st.text(st.characters(exclude_categories=("Cs", "Cc"))),
    st.lists(st.sampled_from(PIECES), max_size=8).map("".join),
)
HAS_MEANING = re.compile(  # Hydra's and OmegaConf's own, as the docstring of settings/overrides.py has it
    r"""null | "(\\.|[^"\\])*" | '(\\.|[^'\\])*' | .*\\[\\()\[\]{}:=,\ \t$].* | (choice|glob|range|int|str)\s*\(.*""",
    re.VERBOSE | re.DOTALL | re.IGNORECASE,
)


def parsed(override: str) -> object:
    """The value as Hydra and OmegaConf have it in the end."""
    (found,) = OverridesParser.create().parse_overrides([override])
    assert not found.is_sweep_override()
    return OmegaConf.create({"key": found.value()}).key


def points(*overrides: str) -> list[list[object]]:
    """The values of each point of a sweep, which Hydra writes down and reads once more (for SLURM in another job)."""
    made = [for_hydra(override, sweeps=True) for override in overrides]
    (batch,) = BasicSweeper.split_arguments(OverridesParser.create().parse_overrides(made), None)
    return [[parsed(override) for override in point] for point in batch]


@given(TEXTS)
@example("???")
@example("a\\")
@example('"a" and "b"')
def test_override_of_a_text_key_is_the_text_that_was_typed(text):
    assume(not HAS_MEANING.fullmatch(text))
    try:
        override = for_hydra(f"prompt={text}")
    except InputError as refused:
        assert re.search(r",\S", text) or text == "???"
        assert len(str(refused).splitlines()) <= len(text.splitlines()) + 1
        if text != "???":  # what it says to type does it
            (argument,) = shlex.split(re.search(r"in quotes: (.*)\.$", str(refused), re.DOTALL)[1])
            assert parsed(for_hydra(argument)) == text
        return
    assert parsed(override) == text


@given(TEXTS)
def test_override_in_a_sweep_survives_being_read_again(text):
    assume("," not in text and text != "???" and not HAS_MEANING.fullmatch(text))
    assert points(f"prompt={text}", "seed=1,2") == [[text, 1], [text, 2]]


@given(TEXTS)
def test_override_in_quotes_is_what_is_between_them(text):
    assume('"' not in text and "'" not in text and "\\" not in text)
    assert parsed(for_hydra(f'prompt="{text}"')) == text


@given(st.text(st.sampled_from("\\${}ax")))
def test_literal_text_has_nothing_to_resolve(text):
    assert OmegaConf.create({"key": literal(text)}).key == text


@pytest.mark.parametrize(
    "override, value",
    [
        ("prompt=null", None),
        ("prompt=NULL", None),
        ("prompt=", ""),
        ("prompt=true", "true"),
        ("prompt=1_000", "1_000"),
        ("image=2024_05_01", "2024_05_01"),
        ("model.path=1.10", "1.10"),
        ("store.path=1e3", "1e3"),
        ("image= a.png ", " a.png "),
        ("image=~/m.png", "~/m.png"),
        ("image=a\\,b.png", "a,b.png"),
        ("image=photo\\ \\(1\\).jpg", "photo (1).jpg"),
        ("image=C:\\data\\m.png", "C:\\data\\m.png"),
        ("prompt='a, \"b\"'", 'a, "b"'),
        ("prompt=str(5)", "5"),
        ("prompt=photo(1)", "photo(1)"),
        ("prompt=[a,b]", "[a,b]"),
        ("prompt={a: b}", "{a: b}"),
        ("prompt=the river, it flows", "the river, it flows"),
        ("prompt=1,000 a, b", "1,000 a, b"),
        ("+prompt=水", "水"),
        ("++prompt=水", "水"),
        ("promt=1_000", "1_000"),  # of no key: what is said of it names the key
        ("seed=水", "水"),
        ("seed=1_000", 1000),
        ("plan_only=true", True),
        ("fusion.cutoff=1e-1", 0.1),
        ("tiles.window=[32,48]", [32, 48]),
        ("sam3.prompts=[1_000, a b, 壁画,'x,y']", ["1_000", "a b", "壁画", "x,y"]),
        ("model.loras=[{path: /my files/a (1).st, weight: 0.5}]", [{"path": "/my files/a (1).st", "weight": 0.5}]),
        ("model.loras=[{path: 1.10, expert: null}]", [{"path": "1.10", "expert": None}]),
        ('regions=[{"prompt": "a, b", "box": [0, 0, 1, 1]}]', [{"prompt": "a, b", "box": [0, 0, 1, 1]}]),
        ("regions=[{prompt: it's (red), mask: é.png}]", [{"prompt": "it's (red)", "mask": "é.png"}]),
        ("regions=[]", []),
        ("regions=Szenen (1).yaml", "Szenen (1).yaml"),
        ("++cluster={num_nodes: 2, address: é}", {"num_nodes": 2, "address": "é"}),
        ("+picture=10", "10"),
        ("+picture=[10,a b]", ["10", "a b"]),
        ("hydra.run.dir=2024_05_01", "2024_05_01"),
        ("hydra.run.dir=a,b", "a,b"),
        ("hydra.job.chdir=true", True),
        ("dataset=2024_05", "2024_05"),
    ],
)
def test_override_keeps_what_has_a_meaning(override, value):
    found = parsed(for_hydra(override))
    assert (OmegaConf.to_container(found) if OmegaConf.is_config(found) else found) == value


@pytest.mark.parametrize(
    "override",
    [
        "image=mural.jpg", "prompt=the water flows", 'prompt="x, y"', "tiles.window=[32, 48]", "image_last=${image}",
        "hydra.run.dir=out/${now:%Y-%m-%d}/${hydra.job.num}", "model.path=${oc.env:HOME,/x}/m", "~image",
        "fusion=fresco", "+cluster=8xh100", "regions=[{prompt: walk, box: [0, 0, 1, 1]}]", "prompt=\\${5}",
        "hydra/launcher=submitit_slurm",
    ],
)  # fmt: skip
def test_override_that_hydra_reads_as_that_stays_as_it_is(override):
    """So that what reports and folders show stays readable."""
    assert for_hydra(override) == override


@pytest.mark.parametrize(
    "text, is_text",
    [("${5}", 1), ("${seed}", 0), ("${sed}", 1), ("${oc.env:HOME}", 0), ("${5} ${seed}", 1), ("${", 1), ("$5 {a}", 1)],
)
def test_override_resolves_what_names_something(text, is_text):
    assert (for_hydra(f"prompt={text}") == f"prompt={text}") != is_text or text == "$5 {a}"
    if is_text:
        assert parsed(for_hydra(f"prompt={text}")) == text


@pytest.mark.parametrize(
    "override, values",
    [
        ("image=a.png,b.png", ["a.png", "b.png"]),
        ("image=bücher.png,photo (1).jpg,null", ["bücher.png", "photo (1).jpg", None]),
        ("image=choice(bücher.png,1.10)", ["bücher.png", "1.10"]),
        ('image=choice("10","2")', ["10", "2"]),
        ("image=photo (1,2).jpg,b.png", ["photo (1,2).jpg", "b.png"]),
        ('prompt="x, y","z"', ["x, y", "z"]),
        ('prompt="x, y", "z"', ["x, y", "z"]),
        ("prompt=it's,1_000", ["it's", "1_000"]),
        ("prompt=a\\,b,c", ["a,b", "c"]),
        ("seed=0,1", [0, 1]),
        ("seed=0, 1", [0, 1]),
        ("seed=range(2)", [0, 1]),
        ("sam3.prompts=[é,b],[c]", [["é", "b"], ["c"]]),
        ("fusion.prior_strength=choice(0,1.5)", [0, 1.5]),
        ("+picture=10,a", ["10", "a"]),
        ("prompt=water,", ["water,"]),
    ],
)
def test_override_sweeps_over_what_is_between_commas(override, values):
    assert [list(point) for point in product(values)] == points(override)


@pytest.mark.parametrize(
    "override, sweeps, words",
    [
        ("image=a,b.png", False, ["with -m", "image=\"a,b.png\""]),
        ("prompt=a, b", True, ["one text", "'prompt=\"a, b\"'", "2 values: prompt=a,b"]),
        ("prompt=水\\,", False, ["backslash", "'prompt=\"水\\,\"'"]),
        ("prompt = x", False, ["prompt cannot be a key", "Write prompt=x"]),
        ("=x", False, ["nothing cannot be a key"]),
        ("标题=x", False, ["标题 cannot be a key"]),
        ("image=glob(*.png)", True, ["image takes no glob", "image=A,B"]),
        ("+picture=glob(*)", True, ["picture must be a choice of files NAME.yaml", "got glob(*)"]),
        ("regions=[{prompt (1)}]", False, ["regions: ", "cannot be read", "in quotes"]),
        ("sam3.prompts=[a,,b]", False, ["sam3.prompts: ", "cannot be read"]),
        ("hydra.run.dir=", False, ["hydra.run.dir must be a folder", "hydra.run.dir=."]),
        ("prompt=???", False, ["three question marks"]),
    ],
)  # fmt: skip
def test_override_that_is_ambiguous_is_refused_with_what_to_type(override, sweeps, words):
    with pytest.raises(InputError) as refused:
        for_hydra(override, sweeps=sweeps)
    assert [word for word in words if word.lower() not in str(refused.value).lower()] == []


@pytest.mark.parametrize("text", ["a (b, c", "it's, 'tis", "a:) b", "]", "[a", '"', "'", "((,))", "a\\"])
def test_split_loses_nothing(text):
    assert ",".join(split(text)) == text


@pytest.mark.parametrize("key", ["hydra.run.dir", "hydra.sweep.dir"])
def test_override_of_a_folder_knows_the_home(key, monkeypatch):
    monkeypatch.setenv("HOME", "/home/a (1)")
    for typed in ("~/out", '"~/out"', "~"):
        assert parsed(for_hydra(f"{key}={typed}")) == "/home/a (1)/out".removesuffix("" if "out" in typed else "/out")
    assert for_hydra(f"{key}=~/${{now:%Y}}") == f'{key}="/home/a (1)/${{now:%Y}}"'


def test_override_of_100_kB_arrives():
    text = "the river, it's (5) " * 6000
    assert parsed(for_hydra(f"prompt={text}")) == text


@pytest.mark.parametrize("text", ["\\${5} ${seed", "水 ${x}\\", 'a "b" \\" ${oc.env}', "x\ny", "é" * 300])
def test_override_in_a_configuration_is_the_text(text):
    """Through the whole of Hydra, the schema, and once more OmegaConf."""
    assert compose_config(for_hydra(f"prompt={text}")).prompt == text


@pytest.mark.parametrize(
    "typed, taken",
    [
        ("cluster=8xh100", "+cluster=8xh100"),
        ("+cluster=8xh100", "+cluster=8xh100"),
        ("cluster=none_such", "cluster=none_such"),
        ("fusion=spot", "fusion=spot"),
    ],
)
def test_override_that_chooses_a_file_needs_no_plus(typed, taken):
    assert for_hydra(typed, groups=[CONFIG_FOLDER]) == taken
