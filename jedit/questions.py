"""Prompts with candidate answers, for evaluation, as padded arrays."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from jedit.room import round_up
from jedit.tokens import encoded, render, start_ids, target_ids


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
    prompts.append(encoded(tokenizer, text, bos))
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


def bunches(
  q: Questions, rows: int, parts: int = 1
) -> Iterator[tuple[list[np.ndarray], list[Questions]]]:
  """Chunks of questions of like lengths, at most `rows` each: indices, parts.

  Lengths are alike if they have the same power of two, so that few programs
  are compiled. The second have a multiple of `parts` rows, filled up.
  """
  power = lambda n, least: (
    2 ** np.ceil(np.log2(np.maximum(n, least))).astype(int)
  )
  wide, long = power(q.prompt_len, 64), power(q.target_len.max(-1), 8)
  for width, length in np.unique(np.stack([wide, long]), axis=1).T.tolist():
    here = np.flatnonzero((wide == width) & (long == length))
    room = 8192 // width, 2048 // (q.target.shape[1] * length)
    size = max(1, min(rows, *room))
    chunks = [here[i : i + size] for i in range(0, len(here), size)]
    yield chunks, _cut(q, chunks, round_up(len(chunks[0]), parts))


def _cut(q: Questions, chunks: list[np.ndarray], rows: int) -> list[Questions]:
  """Each chunk's questions, narrowed alike and filled up to `rows`."""
  here = np.concatenate(chunks)
  wide = round_up(int(q.prompt_len[here].max()), 8)
  long = round_up(int(q.target_len[here].max()), 4)

  def fill(a, chunk):
    missing = rows - len(chunk)
    return np.pad(a[chunk], [(0, missing), *[(0, 0)] * (a.ndim - 1)])

  whole = Questions(
    q.prompt[:, :wide], q.prompt_len, q.target[:, :, :long], q.target_len
  )
  return [Questions(*(fill(a, chunk) for a in whole)) for chunk in chunks]
