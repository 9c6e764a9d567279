"""Causal tracing: which states carry a fact.

The indirect effect of the state of token i at layer l on the answer o is

    IE(i, l) = P*[o | clean h(i, l)] - P*[o]

with the three runs of restore.py; its mean over facts, by layer and by the role
of the token, says where the model looks a fact up, and so where to edit it.

References:
  Meng et al., Locating and Editing Factual Associations in GPT, NeurIPS 2022,
  section 2.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jedit import restore
from jedit.models.transformer import Model
from jedit.prompts import located
from jedit.records import Request
from jedit.restore import Facts
from jedit.room import round_up
from jedit.tokens import target_ids
from jedit.types import JeditError, Params

ROLES = (
  'first subject token',
  'middle subject tokens',
  'last subject token',
  'first token after',
  'further tokens',
  'last token',
)


class Effects(NamedTuple):
  """P[o] and P*[o], [N], and by kind IE [N, L, T], NaN before the subject."""

  clean: np.ndarray
  corrupted: np.ndarray
  indirect: dict[str, np.ndarray]


def facts(
  tokenizer: Any, requests: Sequence[Request], rendering: str = 'raw'
) -> Facts:
  """Prompts of requests, and the first token of each one's `old_target`."""
  lacks = [r.id for r in requests if r.old_target is None]
  if lacks or not requests:
    what = f'record {lacks[0]} has no true answer' if lacks else 'no requests'
    raise JeditError(f'{what}: trace requests with "old_target"')
  rows = [located(tokenizer, r, rendering) for r in requests]
  answers = [target_ids(tokenizer, r.old_target, rendering) for r in requests]
  wide = round_up(max(len(ids) for ids, _, _ in rows), 4)
  tokens = np.zeros((len(rows), wide), np.int32)
  for row, (ids, _, _) in zip(tokens, rows, strict=True):
    row[: len(ids)] = ids
  column = lambda values: np.array(list(values), np.int32)
  return Facts(
    tokens,
    column(len(ids) for ids, _, _ in rows),
    column(first for _, first, _ in rows),
    column(last for _, _, last in rows),
    column(ids[0] for ids in answers),
  )


def roles(facts: Facts) -> np.ndarray:
  """Index into ROLES of each token [N, T]; -1 before the subject and after all.

  A token has one role: that of the last subject token before that of the first
  (a subject of one token), that of the last token before those after.
  """
  slots = np.arange(facts.tokens.shape[1])
  first, last, length = (
    a[:, None] for a in (facts.first, facts.last, facts.length)
  )
  rules = {
    -1: (slots < first) | (slots >= length),
    2: slots == last,
    0: slots == first,
    1: slots < last,
    5: slots == length - 1,
    3: slots == last + 1,
  }
  return np.select(list(rules.values()), list(rules), 4)


def noise_scale(params: Params, facts: Facts, factor: float = 3.0) -> float:
  """`factor` standard deviations of the embeddings of all subject tokens."""
  subject = np.isin(roles(facts), (0, 1, 2))
  table = np.asarray(params['embed']['tokens'])
  return factor * float(table[facts.tokens[subject]].astype(np.float64).std())


@functools.partial(jax.jit, static_argnums=(2, 3, 4))
def _noise(key, numbers, samples, wide, width):
  """Normal [N, S, T, D], the same whatever else is in the chunk or padded."""

  def draw(number, slot):
    here = jax.random.fold_in(jax.random.fold_in(key, number), slot)
    return jax.random.normal(here, (samples, width))

  by_token = jax.vmap(jax.vmap(draw, (None, 0)), (0, None))
  return by_token(numbers, jnp.arange(wide)).swapaxes(1, 2)


def default_windows(num_layers: int) -> dict[str, int]:
  """Layers restored together, by kind: one block, and of MLPs and attentions
  the share of the network that ROME's 10 are of GPT-2 XL's 48."""
  share = max(1, round(num_layers * 10 / 48))
  return {'block': 1, 'mlp': share, 'attention': share}


def effects(
  model: Model,
  params: Params,
  facts: Facts,
  *,
  scale: float,
  samples: int = 10,
  seed: int = 0,
  windows: Mapping[str, int] | None = None,
  rows: int = 8,
  progress: Callable[[int], None] = lambda done: None,
) -> Effects:
  """Traces facts, `rows` at a time, with one compiled program a kind.

  Args:
    model: the network.
    params: unsplit params.
    facts: prompts and answers, as NumPy arrays.
    scale: standard deviation of the noise (see noise_scale).
    samples: of the noise, for each fact; effects are means over them.
    seed: of the noise.
    windows: kind -> layers restored together; default_windows by default.
    rows: facts that run together.
    progress: called with the number of facts done after each chunk.
  """
  windows = windows or default_windows(model.config.num_layers)
  for kind, window in windows.items():
    if kind not in restore.KINDS or window < 1:
      known = ', '.join(restore.KINDS)
      raise JeditError(f'windows[{kind!r}]={window}: 1 or more, for {known}')
  total, wide = facts.tokens.shape
  fill = -total % rows
  padded = jax.tree.map(
    lambda a: np.concatenate([a, np.zeros((fill, *a.shape[1:]), a.dtype)]),
    facts,
  )
  work = [
    restore.budget(Facts(*(a[n : n + 1] for a in padded)))[1]
    for n in range(total + fill)
  ]
  order = np.argsort(work)  # dealt out like cards: chunks of equal work
  hands = [order[c :: len(order) // rows] for c in range(len(order) // rows)]
  chunks = [Facts(*(a[hand] for a in padded)) for hand in hands]
  spots, tokens = map(max, zip(*map(restore.budget, chunks), strict=True))
  size = round_up(spots, 8), round_up(tokens, 32)
  key, out, done = jax.random.key(seed), [], 0
  for hand, chunk in zip(hands, chunks, strict=True):
    noise = _noise(key, hand, samples, wide, model.config.width)
    runs = restore.runs(model, params, chunk, scale * noise)
    indirect = {
      kind: restore.restored(model, params, chunk, runs, kind, window, size)
      - runs.low[:, None, None]
      for kind, window in windows.items()
    }
    out.append(jax.device_get(Effects(runs.high, runs.low, indirect)))
    done += int((hand < total).sum())
    progress(done)
  back = np.argsort(np.concatenate(hands))[:total]
  return jax.tree.map(lambda *a: np.concatenate(a)[back], *out)


def averages(indirect: np.ndarray, facts: Facts) -> np.ndarray:
  """AIE [L, roles]: means within a fact, then over the facts that have the
  role; NaN where none has.

  Args:
    indirect: IE [N, L, T] of a kind.
    facts: they were traced.
  """
  role = roles(facts)
  out = np.full((indirect.shape[1], len(ROLES)), np.nan)
  for index in range(len(ROLES)):
    inside = (role == index)[:, None]
    has = inside.any((1, 2))
    if has.any():
      total = np.where(inside, indirect, 0)[has].sum(-1)
      out[:, index] = (total / inside[has].sum(-1)).mean(0)
  return out


def suggested(effect: np.ndarray, count: int) -> tuple[int, int]:
  """First and last of `count` layers around the peak of an effect [L].

  The peak is in the middle, or just above it. The last layer is never among
  them: a value needs a layer above the site.
  """
  most = len(effect) - 1 - count
  if most < 0:
    raise JeditError(
      f'{count} layers to edit: a model of {len(effect)} layers has '
      f'{len(effect) - 1} that can be edited'
    )
  low = min(max(int(np.argmax(effect)) - count // 2, 0), most)
  return low, low + count - 1
