"""Prompts of a request set through a model, teacher-forced.

A prompt is run once and its last hidden state and cache serve all its
candidate targets. Token ids are joined, never encoded again.
"""

import functools
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jedit import answers, metrics, parts, sharding
from jedit.models import transformer
from jedit.models.transformer import Model
from jedit.questions import Questions, bunches, questions
from jedit.records import Request
from jedit.room import round_up
from jedit.types import Params


class Probe(NamedTuple):
  """The questions that measure a request set.

  Attributes:
    questions: candidates are (new target, old target), or (its own answer,
      none).
    record: int [Q], index of the request.
    kind: int [Q], index into metrics.ASKED.
    answers: [Q], what is right, in words.
  """

  questions: Questions
  record: np.ndarray
  kind: np.ndarray
  answers: list[tuple[str, ...]]

  @property
  def long(self) -> set[int]:
    """Records whose new target is more than a phrase."""
    first = self.kind == metrics.ASKED.index('rewrite')
    size = self.questions.target_len[:, 0]
    return set(self.record[first & (size > metrics.PHRASE)].tolist())


class Scores(NamedTuple):
  """Of each question's candidates, teacher-forced; NaN where one is absent.

  Attributes:
    nll: [Q, K], mean -log p of its tokens.
    correct: [Q, K], share of them that are the most probable ones.
    guess: int32 [Q, K, S], the most probable tokens, the first one right after
      the prompt; what stands beyond the candidate's length means nothing.
  """

  nll: np.ndarray
  correct: np.ndarray
  guess: np.ndarray


def probe(
  tokenizer,
  requests: Sequence[Request],
  rendering: str = 'raw',
  openings: Collection[int] = (),
) -> Probe:
  """All questions of each request.

  Args:
    tokenizer: the model's.
    requests: the facts.
    rendering: how prompts are put.
    openings: indices of the requests whose openings are asked, too, as they
      are (raw); they have no right answer.
  """
  rows = []
  for number, r in enumerate(requests):
    both, new = (r.target, r.old_target), (r.target,)
    asked = [('rewrite', r.text, both, new)]
    asked += [('paraphrase', text, both, new) for text in r.paraphrases]
    old = (r.old_target,) if r.old_target else ()
    asked += [('neighbour', text, both, old) for text in r.neighbours]
    asked += [
      (p.kind, p.prompt, (p.answers[0], None), p.answers) for p in r.probes
    ]
    if r.denial and rendering == 'raw':
      asked.append(('denial', r.denial, both, ()))
    if number in openings and rendering == 'raw':
      asked += [('opening', text, (None, None), ()) for text in r.openings]
    rows += [
      (number, metrics.ASKED.index(kind), *rest) for kind, *rest in asked
    ]
  record, kind, texts, targets, right = zip(*rows, strict=True)
  q = questions(tokenizer, texts, targets, rendering)
  return Probe(q, np.array(record), np.array(kind), list(right))


def pick(asked: Probe, index: np.ndarray) -> Probe:
  """Some of the questions."""
  return Probe(
    Questions(*(a[index] for a in asked.questions)),
    asked.record[index],
    asked.kind[index],
    [asked.answers[i] for i in index],
  )


@functools.partial(jax.jit, static_argnums=(0, 3, 4))
def _score(model, params, q: Questions, head: int, tail: int):
  """Of a chunk: -log p, summed over target tokens [R, K], and guess.

  `head` and `tail` are tokens that a part of the chunk has at most.
  """
  part = lambda *q: _score_part(model, params, Questions(*q), head, tail)
  return parts.each_rows(part, *q)


def _score_part(model, params, q: Questions, head: int, tail: int):
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
  guess = jnp.zeros(q.target.shape, jnp.int32)
  guess = guess.at[:, :, 0].set(jnp.argmax(logits, -1)[:, None])
  if tail:
    flat = lambda a: a.swapaxes(0, 1).reshape(count * rows, *a.shape[2:])
    more = jnp.arange(long)[None] < flat(q.target_len)[:, None] - 1
    start = jnp.tile(q.prompt_len, count)[:, None]
    here = transformer.layout(more, start + jnp.arange(long)[None], tail)
    target = flat(q.target)
    tokens = transformer.take(target.ravel(), here.slot)
    wanted = transformer.take(jnp.roll(target, -1, axis=1).ravel(), here.slot)
    x = model.embed(params, tokens, here.positions)
    x, _ = transformer.run(model, params['layers'], x, here, past)
    logits = model.logits(params, x)
    chosen = jnp.take_along_axis(logits, wanted[:, None], axis=1)[:, 0]
    grid = lambda a: (
      transformer.to_grid(a, here).reshape(count, rows, long).swapaxes(0, 1)
    )
    nll += grid(jax.nn.logsumexp(logits, -1) - chosen).sum(-1)
    guess = guess.at[:, :, 1:].set(grid(jnp.argmax(logits, -1))[:, :, :-1])
  return nll, guess


def score(
  model: Model,
  params: Params,
  questions: Questions,
  rows: int = 128,
  progress: Callable[[int], None] = lambda done: None,
) -> Scores:
  """Scores all questions, those of about the same length together.

  Args:
    model: the network.
    params: unsplit params.
    questions: prompts and candidate targets.
    rows: most questions a chunk; long ones go fewer at a time.
    progress: called with the number of questions done after each chunk.
  """
  nll = np.zeros(questions.target_len.shape)
  guess = np.zeros(questions.target.shape, np.int32)
  done, split = 0, sharding.parts()
  most = lambda counts: int(counts.reshape(split, -1).sum(1).max())
  for chunks, cut in bunches(questions, rows, split):
    head = max(most(q.prompt_len) for q in cut)
    tail = max(most(np.maximum(q.target_len - 1, 0)) for q in cut)
    head, tail = round_up(head, 64), round_up(tail, 32) if tail else 0
    for chunk, q in zip(chunks, cut, strict=True):
      found = sharding.fetch(_score(model, params, q, head, tail))
      here = len(chunk)
      nll[chunk] = found[0][:here]
      guess[chunk, :, : q.target.shape[2]] = found[1][:here]
      done += here
      progress(done)
  size = np.where(questions.target_len, questions.target_len, np.nan)
  return Scores(nll / size, share(guess, questions.target, questions), guess)


def share(guess: np.ndarray, tokens: np.ndarray, q: Questions) -> np.ndarray:
  """[Q, K], of a candidate's positions, where a guess is what `tokens` says."""
  real = np.arange(guess.shape[-1]) < q.target_len[..., None]
  size = np.where(q.target_len, q.target_len, np.nan)
  return (real & (guess == tokens)).sum(-1) / size


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
  scores: Scores,
  asked: Probe,
  before: np.ndarray | None = None,
  exclude: set[int] | frozenset[int] = frozenset(),
  said: Mapping[int, str] | None = None,
  consistency: Mapping[int, float] | None = None,
  tables: Mapping[str, metrics.Table] = metrics.TABLES,
) -> dict[str, np.ndarray]:
  """{table: [N, metrics]} of scored questions (metrics.by_record).

  Args:
    scores: of the questions.
    asked: they.
    before: the guess of the model before the edit; without it nothing can be
      called unchanged.
    exclude: records that are left out.
    said: what the model says freely to some of the questions, by index.
    consistency: of what it writes after openings (references.py), by index.
    tables: what to fill in.
  """
  same = np.full(scores.nll.shape, np.nan)
  if before is not None:
    same = share(scores.guess, before, asked.questions)
  found = metrics.values(asked.kind, scores.nll, scores.correct, same)
  for name, right in (('exact', answers.exact), ('contains', answers.contains)):
    found[name] = np.full(len(asked.kind), np.nan)
    for i, text in (said or {}).items():
      if asked.answers[i]:
        found[name][i] = right(text, asked.answers[i])
  found['rouge-l'] = np.full(len(asked.kind), np.nan)
  long = asked.long
  for i, text in (said or {}).items():
    if asked.answers[i] and asked.record[i] in long:
      found['rouge-l'][i] = answers.recall(text, asked.answers[i])
  opens = asked.kind == metrics.ASKED.index('opening')
  found['entropy'] = np.full(len(opens), np.nan)
  found['tf-idf'] = np.full(len(opens), np.nan)
  for i, text in (said or {}).items():
    if opens[i]:
      found['entropy'][i] = answers.entropy(text)
  for i, value in (consistency or {}).items():
    found['tf-idf'][i] = value
  return metrics.by_record(asked.record, asked.kind, found, exclude, tables)


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
