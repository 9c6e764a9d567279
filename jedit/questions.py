"""Prompts with candidate answers, for evaluation, as padded arrays."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from jedit.prompts import round_up
from jedit.tokens import render, start_ids, target_ids


class Questions(NamedTuple):
  """Prompts with K candidate continuations each, as NumPy arrays.

  Attributes:
    prompt: int32 [Q, P], right-padded.
    prompt_len: int32 [Q].
    target: int32 [Q, K, S], right-padded.
    target_len: int32 [Q, K]; 0 where a candidate is absent.
  """

  prompt: np.ndarray
  prompt_len: np.ndarray
  target: np.ndarray
  target_len: np.ndarray


def questions(
  tokenizer: Any,
  texts: Sequence[str],
  targets: Sequence[Sequence[str | None]],
  rendering: str = 'raw',
) -> Questions:
  """Prompts [Q] and their K candidate targets as padded arrays."""
  bos = start_ids(tokenizer)
  prompts, answers = [], []
  for text, candidates in zip(texts, targets, strict=True):
    text = render(tokenizer, text, rendering)
    ids = tokenizer(text, add_special_tokens=False).input_ids
    prompts.append(ids if ids[: len(bos)] == bos and bos else bos + ids)
    answers.append(
      [
        [] if c is None else target_ids(tokenizer, c, rendering)
        for c in candidates
      ]
    )
  return pack(prompts, answers)


def pack(
  prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[Sequence[int]]]
) -> Questions:
  """Token ids [Q][P] and [Q][K][S] as padded arrays."""
  wide = round_up(max(map(len, prompts)), 8)
  long = round_up(max(len(a) for row in answers for a in row), 4)
  count = max(map(len, answers))
  prompt = np.zeros((len(prompts), wide), np.int32)
  target = np.zeros((len(prompts), count, long), np.int32)
  prompt_len = np.array([len(p) for p in prompts], np.int32)
  target_len = np.zeros((len(prompts), count), np.int32)
  for q, (ids, row) in enumerate(zip(prompts, answers, strict=True)):
    prompt[q, : len(ids)] = ids
    for k, a in enumerate(row):
      target[q, k, : len(a)], target_len[q, k] = a, len(a)
  return Questions(prompt, prompt_len, target, target_len)
