"""What MEND is trained on: records of edits, other words and what must stay."""

import dataclasses
from collections.abc import Iterable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jedit import files, prompts
from jedit.records import Request
from jedit.room import round_up
from jedit.types import EditBatch, JeditError

_FIELDS = 'src', 'alt', 'rephrase', 'loc', 'loc_ans'


class Examples(NamedTuple):
  """What to edit, the same in other words, and what must stay: [N, 1, ...]."""

  edit: EditBatch
  rephrased: EditBatch
  local: EditBatch


def read(path, tokenizer, rendering: str, max_length: int) -> Examples:
  """Examples of records with src, alt, rephrase, loc and loc_ans.

  `alt` is what the edit makes of the answer.
  """
  kinds = [], [], []
  for where, record in files.read_json(path):
    if isinstance(record, JeditError):
      raise record
    lacks = [f for f in _FIELDS if not isinstance(record.get(f), str)]
    if lacks:
      raise JeditError(f'{where}: no text "{lacks[0]}"; add it or leave it out')
    src, alt, rephrase, loc, answer = (record[f].strip() for f in _FIELDS)
    pairs = (src, alt), (rephrase, alt), (loc, answer)
    for kind, (prompt, target) in zip(kinds, pairs, strict=True):
      kind.append([Request(where, prompt, None, target)])
  if not kinds[0]:
    raise JeditError(f'{path}: no record')
  make = lambda kind: prompts.edit_batches(
    tokenizer, kind, [], 1, rendering, max_length, 'last'
  )
  return Examples(*map(make, kinds))


def divide(examples: Examples, held_out: int) -> tuple[Examples, Examples]:
  """(those to train on, the last `held_out`)."""
  cut = len(examples.edit.valid) - held_out
  if cut < 1:
    raise JeditError(
      f'{cut + held_out} examples, of which {held_out} are held out: give more'
    )
  part = lambda *at: jax.tree.map(lambda a: np.asarray(a)[slice(*at)], examples)
  return part(None, cut), part(cut, None)


def order(seed: int, count: int, updates: int, size: int) -> np.ndarray:
  """Examples of each update, [updates, size]: epochs, each shuffled anew."""
  epochs = range(-(-updates * size // count))
  shuffle = lambda e: np.random.default_rng([seed, e]).permutation(count)
  epochs = np.concatenate([shuffle(e) for e in epochs])
  return epochs[: updates * size].reshape(updates, size)


def with_room(examples: Examples, groups: Iterable[np.ndarray]) -> Examples:
  """The examples, with a budget that is enough for each group of them."""

  def one(batch: EditBatch) -> EditBatch:
    tokens = (batch.head_len + batch.tail_len)[:, 0, 0]
    scored = (batch.label[:, 0, 0] >= 0).sum(-1)
    most = lambda n: round_up(max(int(n[group].sum()) for group in groups), 16)
    # Of plain rows alone.
    return dataclasses.replace(batch, budget=(0, 0, most(tokens), most(scored)))

  groups = list(groups)
  return Examples(*map(one, examples))


def at(examples: Examples, group: np.ndarray) -> Examples:
  """A group of examples: batches of as many requests."""
  first = lambda a: jnp.asarray(a[0])

  def one(batch: EditBatch) -> EditBatch:
    taken = jax.tree.map(lambda a: jnp.asarray(a[group][:, 0]), batch)
    return dataclasses.replace(
      taken, prefix=first(batch.prefix), prefix_len=first(batch.prefix_len)
    )

  return Examples(*map(one, examples))
