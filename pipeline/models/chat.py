"""A language model behind OpenAI's chat API, asked to write prompts: one request, one list of texts.

Fields: https://platform.openai.com/docs/api-reference/chat; vLLM, SGLang, llama.cpp and Ollama speak the same. The list is asked
for in words, since not every server can be bound to a JSON schema, and looked for in whatever comes back.
"""

import json
import re
from dataclasses import dataclass, field
from typing import Any

from pipeline.models.endpoint_client import Again, EndpointClient, NoAnswer
from pipeline.text_check import text_check
from schemas.config import PromptsConfig

PATH = "chat/completions"
MAX_CHARACTERS = 4000  # of a written prompt; what is longer is no prompt
_THOUGHTS = re.compile(r"^.*?</think>", re.DOTALL)  # of models that think aloud


@dataclass(frozen=True, slots=True, kw_only=True)
class Texts:
    """An answer: what was written, the model as the server names it, and its tokens by kind."""

    texts: tuple[str, ...]
    model: str | None = None
    usage: dict[str, int] = field(default_factory=dict)


class ChatModel:
    """Safe for threads. ``write`` may cost money."""

    def __init__(self, config: PromptsConfig) -> None:
        """Raises ModelError if the key's variable is not set here. Sends nothing."""
        assert config.expand is not None
        self._config, self._count, self._problem = config, config.expand.count, text_check(config)
        self._client = EndpointClient(config.expand.model, config.expand, section="prompts.expand", model_key="prompts.expand.model")

    def write(self, prompt: str) -> Texts:
        """``count`` different texts for a prompt, none of which ``blocklist`` or ``max_characters`` forbids.

        Raises NoAnswer: ``refused``, ``bad_request``, ``bad_answer``, ``no_answer``; ModelError where asking further is of no use.
        """
        return self._client.post(PATH, request(self._config, prompt), {}, self._read)

    def take_requests(self) -> int:
        """Requests sent since the last call."""
        return self._client.take_requests()

    def _read(self, data: bytes) -> Texts:
        try:
            answer = json.loads(data)
            choice = answer["choices"][0]
            message = choice["message"]
        except (ValueError, KeyError, IndexError, TypeError, RecursionError):
            raise Again("the answer is no chat completion", code="bad_answer") from None
        if message.get("refusal") or choice.get("finish_reason") == "content_filter":
            raise NoAnswer("refused", " ".join(str(message.get("refusal") or "by the server's content filter").split())[:300])
        written = dict.fromkeys(_texts(message.get("content")))
        texts = [text for text in written if not self._problem(text)]
        if len(texts) < self._count:
            another = next((f"; another {problem}" for problem in map(self._problem, written) if problem), "")
            ended = " and ends early: raise max_tokens in prompts.expand.request" if choice.get("finish_reason") == "length" else ""
            raise Again(f"the answer holds {len(texts)} different prompts of {self._count}{ended}{another}", code="bad_answer")
        usage = answer.get("usage") if isinstance(answer.get("usage"), dict) else {}
        named = answer.get("model")
        return Texts(
            texts=tuple(texts[: self._count]),
            model=named if isinstance(named, str) else None,
            usage={name: usage[name] for name in ("prompt_tokens", "completion_tokens") if isinstance(usage.get(name), int)},
        )


def request(config: PromptsConfig, prompt: str) -> dict[str, Any]:
    """What the server is sent."""
    expand = config.expand
    assert expand is not None
    told = expand.instruction.replace("{count}", str(expand.count))
    size = f" of at most {config.max_characters} characters" if config.max_characters else ""
    how = f"Answer with a JSON array of exactly {expand.count} strings, each a whole prompt{size}, and with nothing else."
    messages = [{"role": "system", "content": f"{told}\n\n{how}"}, {"role": "user", "content": prompt}]
    return {"model": expand.model, "messages": messages, **expand.request}


def _texts(content: object) -> list[str]:
    """The strings of the JSON array in an answer, each on one line; none where there is no such array."""
    if not isinstance(content, str):
        return []
    content = _THOUGHTS.sub("", content)
    try:
        found = json.loads(content[content.index("[") : content.rindex("]") + 1])
    except (ValueError, RecursionError):
        return []
    lines = [" ".join(text.split()) for text in found if isinstance(text, str)]
    return [line for line in lines if 0 < len(line) <= MAX_CHARACTERS and _is_encodable(line)]


def _is_encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:  # half of a surrogate pair
        return False
    return True
