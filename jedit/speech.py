"""What a model says freely to prompts, and writes after openings."""

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
  how: generate.Sampling = generate.Sampling(),
  rows: int = 32,
  progress: Callable[[int], None] = lambda done: None,
) -> list[str]:
  """What the model says to each prompt, to its end-of-text token."""
  order = np.argsort([len(ids) for ids in prompts], kind='stable')
  said: list[str] = [''] * len(order)
  for start in range(0, len(order), rows):
    part = order[start : start + rows]
    ids = [list(prompts[i]) for i in part]
    found = writing.continued(
      model, params, tokenizer, ids, length, how, seed=start
    )
    for i, text in zip(part, found, strict=True):
      said[i] = text
    progress(start + len(part))
  return said


OPENED = 100  # of an opening and what follows it, as in MEMIT's code


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

  Greedily, 32 tokens, or as many as a long answer has; to an opening, drawn
  among the five most probable, and with the opening before it.
  """
  ids = [
    row[:size].tolist()
    for row, size in zip(
      asked.questions.prompt, asked.questions.prompt_len, strict=True
    )
  ]
  opens = asked.kind == metrics.ASKED.index('opening')
  few = min((len(ids[i]) for i in np.flatnonzero(opens)), default=OPENED)
  said: list[str] = [''] * len(ids)
  need, done = np.where(opens, 0, lengths(asked.questions)), 0
  rounds = [
    (need == n, n, generate.Sampling()) for n in np.unique(need).tolist() if n
  ]
  rounds += [(opens, max(OPENED - few, 1), generate.Sampling(top_k=5))]
  for which, length, how in rounds:
    here = np.flatnonzero(which)
    found = speak(
      model, params, tokenizer, [ids[i] for i in here], length, how,
      progress=lambda n, done=done: progress(done + n),
    )  # fmt: skip
    for i, text in zip(here, found, strict=True):
      if opens[i]:
        more = tokenizer(text, add_special_tokens=False).input_ids
        more = more[: max(OPENED - len(ids[i]), 1)]
        before = tokenizer.decode(ids[i], skip_special_tokens=True)
        text = before + tokenizer.decode(more)
      said[i] = text
    done += len(here)
  return said
