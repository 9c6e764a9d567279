"""What a model says freely to prompts, and writes after openings."""

import unicodedata
from collections.abc import Callable, Sequence

import numpy as np

from jedit import generate, metrics, writing
from jedit.evaluate import Probe
from jedit.models.transformer import Model
from jedit.questions import Questions
from jedit.types import Params


def speak(
  model: Model,
  params: Params,
  tokenizer,
  prompts: Sequence[Sequence[int]],
  length: int = 32,
  rows: int = 32,
  progress: Callable[[int], None] = lambda done: None,
) -> list[str]:
  """What the model says to each prompt, greedily, to its end-of-text token."""

  def said(ids, _):
    return writing.continued(model, params, tokenizer, ids, length)

  return _by_length(said, prompts, rows, progress)


def _by_length(fn, prompts, rows, progress) -> list[str]:
  """fn(ids of `rows` prompts of like lengths, seed), in the prompts' order."""
  order = np.argsort([len(ids) for ids in prompts], kind='stable')
  said: list[str] = [''] * len(order)
  for start in range(0, len(order), rows):
    part = order[start : start + rows]
    found = fn([list(prompts[i]) for i in part], start)
    for i, text in zip(part, found, strict=True):
      said[i] = text
    progress(start + len(part))
  return said


OPENED = 100  # tokens of an opening and what follows it


def write(
  model: Model,
  params: Params,
  tokenizer,
  openings: Sequence[Sequence[int]],
  rows: int = 32,
  progress: Callable[[int], None] = lambda done: None,
) -> list[str]:
  """Each opening and what the model writes after it, as MEMIT's code has it.

  100 tokens in all, drawn among the five most probable, on through an end of
  text: n-gram entropy grows with a text's length. Special tokens are left out.
  """
  few = min(map(len, openings), default=OPENED)

  def texts(ids, seed):
    more = writing.extended(
      model, params, ids, max(OPENED - few, 1),
      generate.Sampling(top_k=5), seed,
    )  # fmt: skip
    for a, b in zip(ids, more, strict=True):
      b = b[: max(OPENED - len(a), 1)]
      text = tokenizer.decode([*a, *b], skip_special_tokens=True)
      yield unicodedata.normalize('NFKD', text).replace('\n\n', ' ')

  return _by_length(texts, openings, rows, progress)


def lengths(q: Questions) -> np.ndarray:
  """[Q], tokens of a free answer: a phrase's, or as many as a long answer's."""
  phrases = np.maximum(-(-q.target_len.max(-1) // metrics.PHRASE), 1)
  return phrases * metrics.PHRASE


def tokens(asked: Probe, free: np.ndarray | bool) -> np.ndarray:
  """[Q], of each question and its answer; `free`: [Q], also asked freely."""
  q = asked.questions
  said = np.where(free, lengths(q), 0)
  return q.prompt_len + np.maximum(q.target_len.max(-1), said)


def of_probe(
  model: Model,
  params: Params,
  tokenizer,
  asked: Probe,
  progress: Callable[[int], None] = lambda done: None,
) -> list[str]:
  """What the model says freely to each question.

  Greedily, 32 tokens, or as many as a long answer has; to an opening, `write`.
  """
  ids = [
    row[:size].tolist()
    for row, size in zip(
      asked.questions.prompt, asked.questions.prompt_len, strict=True
    )
  ]
  opens = asked.kind == metrics.ASKED.index('opening')
  said: list[str] = [''] * len(ids)
  need, done = np.where(opens, 0, lengths(asked.questions)), 0
  for length in np.unique(need).tolist():  # 0: the openings
    here = np.flatnonzero(need == length)
    tick = lambda n, done=done: progress(done + n)
    put = [ids[i] for i in here]
    if length:
      found = speak(model, params, tokenizer, put, length, progress=tick)
    else:
      found = write(model, params, tokenizer, put, progress=tick)
    for i, text in zip(here, found, strict=True):
      said[i] = text
    done += len(here)
  return said
