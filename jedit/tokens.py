"""What is asked of a tokenizer: what it puts before a text or after a space."""

from typing import Any

import numpy as np

from jedit.types import JeditError

RENDERINGS = 'raw', 'qa', 'chat'


def start_ids(tokenizer: Any) -> list[int]:
  """What the tokenizer puts in front of every text (BOS or nothing)."""
  bare = tokenizer('a', add_special_tokens=False).input_ids
  full = tokenizer('a').input_ids
  for start in range(len(full) - len(bare) + 1):
    if full[start:][: len(bare)] == bare:
      return full[:start]
  return full[:1]


def encoded(tokenizer: Any, text: str, bos: list[int]) -> list[int]:
  """Ids of a text after `bos`, unless a chat template has written that."""
  ids = tokenizer(text, add_special_tokens=False).input_ids
  return ids if bos and ids[: len(bos)] == bos else bos + ids


def continuation(tokenizer: Any, text: str) -> tuple[list[int], np.ndarray]:
  """Ids of a text that follows other text, and character spans [n, 2]."""
  before = 'a' if text[:1] in ' .' else '\n'
  out = tokenizer(
    before + text, add_special_tokens=False, return_offsets_mapping=True
  )
  spans = np.asarray(out.offset_mapping).reshape(-1, 2) - len(before)
  first = int(np.searchsorted(spans[:, 1] > 0, True))
  return out.input_ids[first:], spans[first:]


def target_ids(
  tokenizer: Any, target: str, rendering: str = 'raw'
) -> list[int]:
  """Ids of a target after its prompt: one space in between, none in chat."""
  gap = '' if rendering == 'chat' else ' '
  return continuation(tokenizer, gap + target.strip())[0]


def render(tokenizer: Any, text: str, rendering: str) -> str:
  """How a prompt is put to the model: raw, as a question, or as a chat turn."""
  if rendering == 'raw':
    return text
  if rendering == 'qa':
    return f'Question: {text}\nAnswer:'
  if rendering == 'chat':
    if not getattr(tokenizer, 'chat_template', None):
      raise JeditError('rendering=chat: this tokenizer has no chat template')
    turn = [{'role': 'user', 'content': text}]
    return tokenizer.apply_chat_template(
      turn, tokenize=False, add_generation_prompt=True
    )
  raise JeditError(f'rendering={rendering!r}: choose {", ".join(RENDERINGS)}')
