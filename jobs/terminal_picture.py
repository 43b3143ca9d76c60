"""A PNG as what a terminal draws: by kitty's graphics protocol (https://sw.kovidgoyal.net/kitty/graphics-protocol/; Ghostty, too), or as
an inline image of iTerm2 (https://iterm2.com/documentation-images.html; WezTerm, mintty). Others would show nothing, or a page of letters.
"""

import base64
from collections.abc import Mapping

CHUNK = 4096  # characters that kitty takes at once
KITTY, ITERM = ("ghostty", "kitty"), ("iTerm.app", "WezTerm", "mintty")  # values of TERM_PROGRAM


def terminal_picture(png: bytes, environment: Mapping[str, str]) -> str | None:
    """What to print; None for a terminal that is not known to draw, or behind tmux and screen, which pass none of it on."""
    program, kind = environment.get("TERM_PROGRAM", ""), environment.get("TERM", "")
    if "TMUX" in environment or kind.startswith(("screen", "tmux")):
        return None
    data = base64.b64encode(png).decode()
    if program in KITTY or kind in ("xterm-kitty", "xterm-ghostty"):
        return "".join(_chunks(data))
    if program in ITERM or environment.get("LC_TERMINAL") == "iTerm2":
        return f"\033]1337;File=inline=1;size={len(png)}:{data}\a"
    return None


def _chunks(data: str) -> list[str]:
    parts = [data[start : start + CHUNK] for start in range(0, len(data), CHUNK)]
    heads = ["a=T,f=100,", *[""] * (len(parts) - 1)]
    return [f"\033_G{head}m={int(part is not parts[-1])};{part}\033\\" for head, part in zip(heads, parts, strict=True)]
