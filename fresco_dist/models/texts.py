"""How much of a text a model reads, by its own tokenizer's files; neither torch nor transformers is imported."""

from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from typing import Any

from fresco_dist.config import ModelConfig
from fresco_dist.models.checkpoint import model_path

SHOWN = 30  # characters of a text's end


def note_of_text(name: str, text: str, model: ModelConfig, max_tokens: int | None) -> str:
    """What there is to say of a text that is longer than the model reads, called `name`; "" of others.

    Nor of one that the tokenizer's files do not tell of: whoever encodes it will say what is wrong with them.
    """
    text = " ".join(text.split())
    if max_tokens is None or len(text.encode()) + 2 <= max_tokens:  # no token is shorter than a byte, but two marks
        return ""
    try:
        ends, num_marks = token_ends(model_path(model) / "tokenizer", text)
    except Exception:  # the library's own, which has no other name
        return ""
    number, kept = len(ends) + num_marks, max_tokens - num_marks
    if number <= max_tokens:
        return ""
    read = text[: ends[kept - 1]][-SHOWN:]
    return f'{name} has {number} tokens, of which the model reads {max_tokens}: up to "...{read}"'


def token_ends(folder: Path, text: str) -> tuple[list[int], int]:
    """Where in the text each of its tokens ends, and how many marks of beginning and end are added to them."""
    if not (folder / "tokenizer.json").is_file() and (folder / "spiece.model").is_file():
        import sentencepiece

        processor = sentencepiece.SentencePieceProcessor(model_file=str(folder / "spiece.model"))
        lengths = map(len, processor.encode(text, out_type=str))  # the first of them has a mark before it
        return [end - 1 for end in accumulate(lengths)], 1
    tokenizer = _read_tokenizer(folder)
    encoded = tokenizer.encode(text, add_special_tokens=False)
    return [end for _, end in encoded.offsets], tokenizer.num_special_tokens_to_add(False)


@lru_cache(maxsize=1)
def _read_tokenizer(folder: Path) -> Any:
    """A `tokenizers.Tokenizer`, which takes a second for a quarter of a million words."""
    from tokenizers import Tokenizer

    if not (folder / "tokenizer.json").is_file():
        return _clip_tokenizer(folder)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _clip_tokenizer(folder: Path) -> Any:
    """CLIP's, of its vocabulary and merges, as transformers makes it (`CLIPTokenizer`)."""
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors

    files = str(folder / "vocab.json"), str(folder / "merges.txt")
    end = "<|endoftext|>"
    words = models.BPE.from_file(*files, continuing_subword_prefix="", end_of_word_suffix="</w>", unk_token=end)
    tokenizer = Tokenizer(words)
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    pattern = Regex(r"""'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+""")
    split = pre_tokenizers.Split(pattern, behavior="removed", invert=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    marks = [(mark, tokenizer.token_to_id(mark)) for mark in ("<|startoftext|>", end)]
    single = f"{marks[0][0]} $0 {end}"
    tokenizer.post_processor = processors.TemplateProcessing(single=single, special_tokens=marks)
    return tokenizer
