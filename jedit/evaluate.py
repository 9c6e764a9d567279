"""Prompts of a request set through a model, teacher-forced.

A prompt is run once and its last hidden state and cache serve all its
candidate targets. Token ids are joined, never encoded again.
"""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jedit import metrics
from jedit.models import transformer
from jedit.models.transformer import Model, Past
from jedit.prompts import round_up
from jedit.questions import Questions, questions
from jedit.records import Request
from jedit.types import Params


class Probe(NamedTuple):
  """The questions that measure a request set.

  Attributes:
    questions: candidates are (new target, old target).
    record: int [Q], index of the request.
    kind: int [Q], index into metrics.KINDS.
  """

  questions: Questions
  record: np.ndarray
  kind: np.ndarray


class Scores(NamedTuple):
  """Of each question's candidates [Q, K], NaN where one is absent, and itself.

  Attributes:
    nll: mean -log p of its tokens.
    correct: share of them that are the most probable ones, teacher-forced.
    says: int32 [Q], the most probable token after the prompt.
  """

  nll: np.ndarray
  correct: np.ndarray
  says: np.ndarray


def probe(
  tokenizer, requests: Sequence[Request], rendering: str = 'raw'
) -> Probe:
  """Rewrite, paraphrase and neighbourhood questions of each request."""
  texts, targets, record, kind = [], [], [], []
  for number, r in enumerate(requests):
    asked = [r.text], r.paraphrases, r.neighbours
    for which, group in enumerate(asked):
      for text in group:
        texts.append(text)
        targets.append((r.target, r.old_target))
        record.append(number)
        kind.append(which)
  q = questions(tokenizer, texts, targets, rendering)
  return Probe(q, np.array(record), np.array(kind))


@functools.partial(jax.jit, static_argnums=(0, 3, 4))
def _score(model: Model, params: Params, q: Questions, head: int, tail: int):
  """Sums over a chunk's target tokens, -log p and right ones [R, K]; says."""
  rows, wide = q.prompt.shape
  count, long = q.target.shape[1:]
  slots = jnp.broadcast_to(jnp.arange(wide), q.prompt.shape)
  at = transformer.layout(slots < q.prompt_len[:, None], slots, head)
  tokens = transformer.take(q.prompt.ravel(), at.slot)
  x = model.embed(params, tokens, at.positions)
  if tail:
    x, past = transformer.cache(model, params['layers'], x, at)
  else:
    x, _ = transformer.run(model, params['layers'], x, at)
  end = at.token[jnp.arange(rows), jnp.maximum(q.prompt_len - 1, 0)]
  logits = model.logits(params, transformer.take(x, end))
  first = q.target[:, :, 0]
  nll = jax.nn.logsumexp(logits, -1)[:, None] - jnp.take_along_axis(
    logits, first, axis=1
  )
  says = jnp.argmax(logits, -1)
  correct = (says[:, None] == first).astype(jnp.float32)
  if tail:
    more = jnp.arange(long)[None] < (q.target_len.reshape(-1, 1) - 1)
    start = jnp.repeat(q.prompt_len, count)[:, None]
    here = transformer.layout(more, start + jnp.arange(long)[None], tail)
    target = q.target.reshape(-1, long)
    tokens = transformer.take(target.ravel(), here.slot)
    wanted = transformer.take(jnp.roll(target, -1, axis=1).ravel(), here.slot)
    x = model.embed(params, tokens, here.positions)
    each = lambda a, axis: jnp.repeat(a, count, axis=axis)
    past = Past(each(past.k, 1), each(past.v, 1), each(past.mask, 0))
    x, _ = transformer.run(model, params['layers'], x, here, past)
    logits = model.logits(params, x)
    chosen = jnp.take_along_axis(logits, wanted[:, None], axis=1)[:, 0]
    rest = jax.nn.logsumexp(logits, -1) - chosen
    right = (jnp.argmax(logits, -1) == wanted).astype(jnp.float32)
    grid = lambda a: transformer.to_grid(a, here).sum(1).reshape(rows, count)
    nll, correct = nll + grid(rest), correct + grid(right)
  return nll, correct, says


def score(
  model: Model,
  params: Params,
  questions: Questions,
  rows: int = 128,
  progress: Callable[[int], None] = lambda done: None,
) -> Scores:
  """Scores all questions, `rows` at a time, in one compiled program.

  Args:
    model: the network.
    params: unsplit params.
    questions: prompts and candidate targets.
    rows: questions a chunk.
    progress: called with the number of questions done after each chunk.
  """
  total = len(questions.prompt_len)
  fill = -total % rows
  padded = jax.tree.map(
    lambda a: np.concatenate([a, np.zeros((fill, *a.shape[1:]), a.dtype)]),
    questions,
  )
  starts = range(0, total + fill, rows)
  chunks = [Questions(*(a[i : i + rows] for a in padded)) for i in starts]
  head = max(int(c.prompt_len.sum()) for c in chunks)
  tail = max(int(np.maximum(c.target_len - 1, 0).sum()) for c in chunks)
  head, tail = round_up(head, 64), round_up(tail, 32) if tail else 0
  out = []
  for number, chunk in enumerate(chunks, 1):
    out.append(jax.device_get(_score(model, params, chunk, head, tail)))
    progress(min(number * rows, total))
  parts = zip(*out, strict=True)
  nll, correct, says = (np.concatenate(a)[:total] for a in parts)
  tokens = np.where(questions.target_len, questions.target_len, np.nan)
  return Scores(nll / tokens, correct / tokens, says)


def known(
  model: Model,
  params: Params,
  tokenizer,
  requests: Sequence[Request],
  rendering: str = 'raw',
) -> list[Request]:
  """Requests whose true answer, all its tokens, is what the model predicts."""
  asked = [r for r in requests if r.old_target is not None]
  if not asked:
    return []
  texts, answers = [r.text for r in asked], [(r.old_target,) for r in asked]
  q = questions(tokenizer, texts, answers, rendering)
  right = score(model, params, q).correct[:, 0] == 1
  return [r for r, yes in zip(asked, right, strict=True) if yes]


def by_record(
  scores: Scores, asked: Probe, exclude: set[int] | frozenset[int] = frozenset()
) -> dict[str, np.ndarray]:
  """{protocol: [N, KINDS]} of scored questions (metrics.by_record)."""
  success = metrics.hits(asked.kind, scores.nll, scores.correct)
  return metrics.by_record(asked.record, asked.kind, success, exclude)


@functools.partial(jax.jit, static_argnums=0)
def perplexity(model: Model, params: Params, tokens: jax.Array) -> jax.Array:
  """exp of the mean -log p of each row's tokens after the first; [R, T] full.

  Args:
    model: the network.
    params: unsplit params.
    tokens: int32 [R, T], no padding.
  """
  rows, wide = tokens.shape
  slots = jnp.broadcast_to(jnp.arange(wide), tokens.shape)
  at = transformer.layout(jnp.ones(tokens.shape, bool), slots, tokens.size)
  x = model.embed(params, tokens.ravel(), at.positions)
  x, _ = transformer.run(model, params['layers'], x, at)
  logits = model.logits(params, x).reshape(rows, wide, -1)[:, :-1]
  chosen = jnp.take_along_axis(logits, tokens[:, 1:, None], axis=2)[..., 0]
  return jnp.exp(jnp.mean(jax.nn.logsumexp(logits, -1) - chosen))
