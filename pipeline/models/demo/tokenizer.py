"""The demo's CLIPTokenizer: CLIP's own byte-pair encoding, cut down to what the grammar's words need.

All 512 byte symbols stay, so any prompt can be tokenized; of CLIP's 48,894 merges only those stay that make single tokens
of the grammar's words. That is a vocabulary of some 650 tokens where CLIP has 49,408, and spares 12 MB of weights.
"""

from __future__ import annotations

import gzip
import itertools
from pathlib import Path

import open_clip
from transformers import CLIPTokenizer

from pipeline.models.demo import grammar
from pipeline.models.demo.training import write_json

START, END = "<|startoftext|>", "<|endoftext|>"
MAX_TOKENS = 32


def words() -> list[str]:
    """Every word that the grammar's captions use, in any wording."""
    relations = itertools.chain(*(grammar.relation_words(relation) for relation in grammar.RELATIONS))
    shapes = [*grammar.SHAPES, *(grammar.plural(shape) for shape in grammar.SHAPES)]
    plain = [*shapes, *grammar.COLOURS, *grammar.SIZES, *grammar.BACKGROUNDS, *grammar.NUMBER_WORDS.values()]
    return sorted({*plain, *" ".join(relations).split(), "a", "an", "on", "grey", "background"})


def vocabulary() -> tuple[list[str], list[tuple[str, str]]]:
    """Tokens in the order of their numbers, and the merges, in CLIP's order of rank."""
    ranks = _clip_merges()
    used = {merge for word in words() for merge in _merges_of(word, ranks)}
    merges = sorted(used, key=ranks.__getitem__)
    letters = list(_byte_symbols())
    return [*letters, *(letter + "</w>" for letter in letters), *(a + b for a, b in merges), START, END], merges


def save_tokenizer(folder: Path) -> CLIPTokenizer:
    """Write the tokenizer's files into `folder` and return it as transformers loads it."""
    tokens, merges = vocabulary()
    write_json(folder / "vocab.json", {token: number for number, token in enumerate(tokens)})
    (folder / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges))
    tokenizer = CLIPTokenizer(
        str(folder / "vocab.json"),
        str(folder / "merges.txt"),
        model_max_length=MAX_TOKENS,
        bos_token=START,
        eos_token=END,
        pad_token=END,
        unk_token=END,
    )
    tokenizer.save_pretrained(folder)
    return tokenizer


def _clip_merges() -> dict[tuple[str, str], int]:
    path = Path(open_clip.__file__).parent / "bpe_simple_vocab_16e6.txt.gz"
    lines = gzip.decompress(path.read_bytes()).decode("utf-8").split("\n")[1 : 49152 - 256 - 2 + 1]
    return {(pair[0], pair[1]): rank for rank, pair in enumerate(line.split() for line in lines)}


def _merges_of(word: str, ranks: dict[tuple[str, str], int]) -> list[tuple[str, str]]:
    """The merges that byte-pair encoding applies to a word (Sennrich et al. 2016, arXiv 1508.07909)."""
    parts, done = [*word[:-1], word[-1] + "</w>"], []
    while len(parts) > 1:
        pair = min(itertools.pairwise(parts), key=lambda pair: ranks.get(pair, len(ranks)))
        if pair not in ranks:
            break
        done.append(pair)
        at = next(k for k in range(len(parts) - 1) if (parts[k], parts[k + 1]) == pair)
        parts[at : at + 2] = ["".join(pair)]
    return done


def _byte_symbols() -> list[str]:
    """GPT-2's printable symbol for each of the 256 bytes."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return [chr(byte) for byte in printable] + [chr(256 + k) for k in range(len(others))]
