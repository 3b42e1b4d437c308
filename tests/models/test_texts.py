"""How much of a text a model reads, against the tokenizers that encode it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import transformers
from make_jobs import make_config

from fresco_dist import models
from fresco_dist.models.checkpoint import model_path
from fresco_dist.models.texts import note_of_text, token_ends

TEXT = "The figures' flags don't wave; 12 lanterns, (softly) lit - über dem Fluß, 水在流动!"


def _clip_folder(path: Path) -> Path:
    """A vocabulary of bytes and a few merges, as CLIP's is published: without tokenizer.json."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    letters = list(bytes_to_unicode().values())
    merges = [("t", "h"), ("th", "e</w>"), ("f", "l"), ("i", "n"), ("e", "r</w>")]
    words = [*letters, *(f"{letter}</w>" for letter in letters), *map("".join, merges)]
    words += ["<|startoftext|>", "<|endoftext|>"]
    path.mkdir()
    (path / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(dict.fromkeys(words))}))
    (path / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges))
    return path


def _spiece_folder(path: Path) -> Path:
    import sentencepiece

    path.mkdir()
    (path / "corpus.txt").write_text(f"{TEXT}\nthe water flows, the figures walk\n" * 20)
    options = {"vocab_size": 80, "minloglevel": 2, "byte_fallback": False}
    sentencepiece.SentencePieceTrainer.train(
        input=str(path / "corpus.txt"), model_prefix=str(path / "spiece"), hard_vocab_limit=False, **options
    )
    return path


def test_tokens_of_the_embedded_model_are_those_of_its_encoder():
    folder = model_path(make_config().model) / "tokenizer"
    encoded = transformers.AutoTokenizer.from_pretrained(folder)(TEXT).input_ids
    ends, num_marks = token_ends(folder, TEXT)
    assert len(ends) + num_marks == len(encoded)


def test_tokens_of_clip_without_tokenizer_json_are_those_of_transformers(tmp_path):
    folder = _clip_folder(tmp_path / "tokenizer")
    encoded = transformers.CLIPTokenizer.from_pretrained(folder)(TEXT).input_ids
    ends, num_marks = token_ends(folder, TEXT)
    assert num_marks == 2 and len(ends) + 2 == len(encoded)


def test_tokens_of_sentencepiece_end_where_its_pieces_do(tmp_path):
    ends, num_marks = token_ends(_spiece_folder(tmp_path / "tokenizer"), "the water flows")
    assert num_marks == 1 and ends == sorted(ends) and ends[-1] == len("the water flows")


def test_text_longer_than_the_model_reads_is_told_with_its_end(model_path, sd_path):
    words = ["walk"] * 600
    words[511] = "left"
    config = make_config(f"model.path={model_path}")
    limit = models.read_spec(config.model).max_tokens
    assert limit == 512
    note = note_of_text("prompt", " ".join(words), config.model, limit)
    assert note.startswith('prompt has 600 tokens, of which the model reads 512: up to "...') and note.endswith('left"')
    assert not note_of_text("prompt", " ".join(words[:512]), config.model, limit)
    config = make_config("model=stable_diffusion", f"model.path={sd_path}")
    assert models.read_spec(config.model).max_tokens == 16
    note = note_of_text("negative_prompt", "walk " * 14 + "left still", config.model, 16)  # and a mark at the end
    assert note.startswith("negative_prompt has 17 tokens, of which the model reads 16") and note.endswith('left"')
    assert not note_of_text("negative_prompt", " ".join(words[:15]), config.model, 16)


@pytest.mark.parametrize("name", ["tokenizer.json", "spiece.model"])
def test_tokenizer_that_cannot_be_read_is_left_to_whoever_encodes(tmp_path, name):
    (tmp_path / "tokenizer").mkdir()
    (tmp_path / "tokenizer" / name).write_text("nonsense")
    assert not note_of_text("prompt", "walk " * 600, make_config(f"model.path={tmp_path}").model, 512)


def test_counting_needs_no_transformers():
    code = "from fresco_dist.models.texts import token_ends; from fresco_dist.models.checkpoint import *\n"
    code += "import sys; from pathlib import Path; import fresco_dist\n"
    code += "print(token_ends(Path(fresco_dist.__file__).parent / 'assets/fresco_tiny/tokenizer', 'water')[0])\n"
    code += "assert not {'torch', 'transformers', 'diffusers'} & set(sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.startswith("["), done.stderr
