"""Weights are read as AUTOMATIC1111's web UI reads them."""

import pytest

from schemas.prompt_weights import pieces, words


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("", []),
        ("a red square", [("a red square", 1.0)]),
        ("a (red:1.3) square", [("a ", 1.0), ("red", 1.3), (" square", 1.0)]),
        ("(red)", [("red", 1.1)]),
        ("[red]", [("red", 1 / 1.1)]),
        ("((red))", [("red", 1.1 * 1.1)]),
        ("(a (red:2) square:0.5)", [("a ", 0.5), ("red", 1.0), (" square", 0.5)]),
        ("([red])", [("red", 1 / 1.1 * 1.1)]),
        (r"\(red\) [\]]", [("(red) ", 1.0), ("]", 1 / 1.1)]),
        ("(red: -.5 )", [("red", -0.5)]),
        ("4:3, (at 4:3:1.2)", [("4:3, ", 1.0), ("at 4:3", 1.2)]),
        ("(red", [("red", 1.1)]),
        ("red) :1.3) :)", [("red) :1.3) :)", 1.0)]),
        (r"a\b", [(r"a\b", 1.0)]),
    ],
)
def test_brackets_are_weights(prompt: str, expected: list[tuple[str, float]]) -> None:
    assert [(piece.text, piece.weight) for piece in pieces(prompt)] == expected
    assert words(prompt) == "".join(text for text, _ in expected)
