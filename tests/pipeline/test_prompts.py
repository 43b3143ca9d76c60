"""Prompt sources stream, keep what they find, and say which row is wrong."""

import json
import re
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.prompts import read_prompts
from schemas.config import PromptsConfig
from schemas.errors import PromptError
from schemas.records import Prompt


def read(folder: Path, name: str, content: bytes | str) -> list[Prompt]:
    (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return list(read_prompts(PromptsConfig(file=name), base_dir=folder))


ROWS = [
    {"id": "x1", "prompt": "a cat, asleep", "negative_prompt": "dog", "label": "cat", "colour": "red"},
    {"id": "x2", "prompt": 'a "dog"', "negative_prompt": "", "label": "", "colour": "blue"},
]
EXPECTED = [
    Prompt(id="x1", text="a cat, asleep", negative="dog", label="cat", tags={"colour": "red"}),
    Prompt(id="x2", text='a "dog"', negative=None, label=None, tags={"colour": "blue"}),
]


def test_all_formats_carry_the_same_columns(tmp_path: Path) -> None:
    csv = 'id,prompt,negative_prompt,label,colour\nx1,"a cat, asleep",dog,cat,red\nx2,"a ""dog""",,,blue\n'
    assert read(tmp_path, "p.csv", csv) == EXPECTED
    assert read(tmp_path, "p.jsonl", "\n".join(map(json.dumps, ROWS))) == EXPECTED
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "p.parquet")
    assert list(read_prompts(PromptsConfig(file="p.parquet"), base_dir=tmp_path)) == EXPECTED


def test_a_dataset_on_disk_is_read_with_its_classes_by_name(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    kinds = {"prompt": datasets.Value("string"), "label": datasets.ClassLabel(names=["cat", "dog"]), "weight": datasets.Value("float64")}
    rows = {"prompt": [f"prompt {n}" for n in range(5)], "label": [0, 1, None, -1, 1], "weight": [0.5] * 5}
    made = datasets.Dataset.from_dict(rows, features=datasets.Features(kinds))
    made.select([4, 0, 1, 2, 3]).save_to_disk(tmp_path / "set", num_shards=2)
    found = list(read_prompts(PromptsConfig(file="set"), base_dir=tmp_path))
    labels = {0: "cat", 1: "dog", 4: "dog"}
    assert found == [
        Prompt(id=f"{at:06d}", text=f"prompt {n}", negative=None, label=labels.get(n), tags={"weight": "0.5"})
        for at, n in enumerate([4, 0, 1, 2, 3])
    ]
    datasets.DatasetDict({"train": made, "test": made}).save_to_disk(tmp_path / "splits")
    with pytest.raises(PromptError, match="give the folder of one of them: train, test"):
        list(read_prompts(PromptsConfig(file="splits"), base_dir=tmp_path))
    assert len(list(read_prompts(PromptsConfig(file="splits/test"), base_dir=tmp_path))) == 5
    first = next((tmp_path / "set").glob("*.arrow"))
    first.write_bytes(first.read_bytes()[:50])
    with pytest.raises(PromptError, match="not a readable Arrow file"):
        list(read_prompts(PromptsConfig(file="set"), base_dir=tmp_path))
    (tmp_path / "set" / "state.json").unlink()
    with pytest.raises(PromptError, match="no dataset that save_to_disk wrote"):
        list(read_prompts(PromptsConfig(file="set"), base_dir=tmp_path))


def test_txt_has_a_prompt_per_line_and_ids_are_row_numbers(tmp_path: Path) -> None:
    prompts = read(tmp_path, "p.txt", "\ufeffein Bär\r\n\n  a cat  \n")
    assert [(p.id, p.text) for p in prompts] == [("000000", "ein Bär"), ("000001", "a cat")]


def test_a_long_prompt_and_odd_characters_are_kept(tmp_path: Path) -> None:
    text = "word " * 2000 + "😀 \u202eRTL <script>"
    assert read(tmp_path, "p.jsonl", json.dumps({"prompt": text}))[0].text == text


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("a Logo on a wall", "p.txt: line 2: the prompt holds 'Logo', which prompts.blocklist forbids"),
        ("in the style of\tX. Y.", "holds 'style of\\tX. Y.'"),
        ("logos, catalogo", None),
        ("x" * 41, r"line 2: the prompt has 41 characters, prompts.max_characters is 40"),
        ("é" * 40, None),
    ],
)
def test_blocked_words_and_long_prompts_are_refused_with_their_row(tmp_path: Path, text: str, told: str | None) -> None:
    (tmp_path / "p.txt").write_text(f"a cat\n{text}\n")
    config = PromptsConfig(file="p.txt", blocklist=["logo", "style of\tx. y."], max_characters=40)
    if told is None:
        assert [prompt.text for prompt in read_prompts(config, base_dir=tmp_path)] == ["a cat", text]
    else:
        with pytest.raises(PromptError, match=re.escape(told)):
            list(read_prompts(config, base_dir=tmp_path))


def test_numbers_and_lists_become_text_tags(tmp_path: Path) -> None:
    prompt = read(tmp_path, "p.jsonl", '{"prompt": "x", "count": 3, "colours": ["a", "b"], "none": null}')[0]
    assert prompt.tags == {"count": "3", "colours": '["a", "b"]'}


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("p.txt", b"", "holds no prompts"),
        ("p.txt", b"\n  \n", "holds no prompts"),
        ("p.csv", b"prompt\n", "holds no prompts"),
        ("p.txt", b"fine\nb\xe9te\n", r"p.txt: line 2: byte 2 \(0xe9\) is not UTF-8"),
        ("p.csv", b"prompt,x\nok,1\n\xff,2\n", "p.csv: line 3: byte 1"),
        ("p.csv", b"text,label\na cat,cat\n", "p.csv: line 2: no 'prompt' among the columns text, label"),
        ("p.csv", b"prompt\na, b\n", "p.csv: line 2: more cells than columns"),
        ("p.csv", b'prompt\n"a\n', "p.csv: line 2: not valid CSV"),
        ("p.jsonl", b'{"prompt": "a"}\n{"prompt": \n', "p.jsonl: line 2: not valid JSON"),
        ("p.jsonl", b"[1]\n", "p.jsonl: line 1: is a list"),
        ("p.jsonl", b'{"prompt": 3}\n', "p.jsonl: line 1: 'prompt' is 3"),
        ("p.jsonl", b'{"prompt": "  "}\n', "p.jsonl: line 1: the prompt is empty"),
        ("p.jsonl", b'{"prompt": "\\ud800"}\n', "p.jsonl: line 1: character 0 is half of a surrogate pair"),
        ("p.parquet", b"no parquet", "p.parquet: not a readable Parquet file"),
        ("p.docx", b"x", ".docx is not a prompt format; use one of: .txt .csv .jsonl .parquet"),
    ],
)
def test_a_bad_row_is_placed(tmp_path: Path, name: str, content: bytes, expected: str) -> None:
    with pytest.raises(PromptError, match=expected) as caught:
        read(tmp_path, name, content)
    assert "\n" not in str(caught.value)


def test_a_missing_file_says_where_it_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(PromptError, match="there is no such prompt file"):
        list(read_prompts(PromptsConfig(file="none.txt"), base_dir=tmp_path))
