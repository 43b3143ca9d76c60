"""Prompts with weights, as AUTOMATIC1111's web UI reads them: ``a (red:1.3) square``, ``(more)`` and ``[less]``.

Round brackets alone weigh 1.1, square ones 1 / 1.1; they may be nested, and a backslash before a bracket makes it a
character. A bracket without its partner counts to the end, or is a character, as there. Written from the description in
https://github.com/AUTOMATIC1111/stable-diffusion-webui/wiki/Features#attentionemphasis.
"""

import re
from dataclasses import dataclass

BRACKET = 1.1
_PARTS = re.compile(r"\\[\\()\[\]]|[()\[\]]|:\s*([+-]?(?:\d+\.?\d*|\.\d+))\s*\)|[^\\()\[\]:]+|.", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of a prompt, and how much it counts; 1 is as without weights."""

    text: str
    weight: float


def pieces(prompt: str) -> tuple[Piece, ...]:
    """The prompt without its brackets, neighbours of equal weight joined."""
    texts: list[str] = []
    weights: list[float] = []
    opened: dict[str, list[int]] = {"(": [], "[": []}

    def close(bracket: str, factor: float) -> None:
        start = opened[bracket].pop()
        weights[start:] = [weight * factor for weight in weights[start:]]

    for match in _PARTS.finditer(prompt):
        part, factor = match[0], match[1]
        if part in opened:
            opened[part].append(len(texts))
        elif (part == ")" or factor) and opened["("]:
            close("(", float(factor or BRACKET))
        elif part == "]" and opened["["]:
            close("[", 1 / BRACKET)
        else:
            texts.append(part[-1] if part[0] == "\\" else part)
            weights.append(1.0)
    for bracket, factor in (("(", BRACKET), ("[", 1 / BRACKET)):
        while opened[bracket]:
            close(bracket, factor)
    return _joined(texts, weights)


def words(prompt: str) -> str:
    """The prompt as it would be without weights: a caption."""
    return "".join(piece.text for piece in pieces(prompt))


def _joined(texts: list[str], weights: list[float]) -> tuple[Piece, ...]:
    found: list[Piece] = []
    for text, weight in zip(texts, weights, strict=True):
        if found and found[-1].weight == weight:
            found[-1] = Piece(found[-1].text + text, weight)
        else:
            found.append(Piece(text, weight))
    return tuple(found)
