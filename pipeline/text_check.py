"""What the text of a prompt may not be, whoever wrote it: the source, or the language model of ``prompts.expand``."""

import re
from collections.abc import Callable

from schemas.config import PromptsConfig


def text_check(config: PromptsConfig) -> Callable[[str], str]:
    """A function that tells of a prompt's text what ``blocklist`` and ``max_characters`` have against it; empty if nothing."""
    words = "|".join(map(re.escape, config.blocklist))
    blocked = re.compile(rf"(?<!\w)(?:{words})(?!\w)", re.IGNORECASE) if words else None

    def problem(text: str) -> str:
        if config.max_characters is not None and len(text) > config.max_characters:
            return f"has {len(text):,} characters, prompts.max_characters is {config.max_characters:,}"
        found = blocked.search(text) if blocked else None
        return f"holds {found[0]!r}, which prompts.blocklist forbids" if found else ""

    return problem
