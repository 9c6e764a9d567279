"""How many facts do a few layers hold? Where a stream meets its rank limit.

  python -m tests.benchmarks.rank --facts=10000

SmolLM2, CounterFact (JEDIT_DATA), keys of the unedited model, plain and with
contexts as in a run. After so many facts, of the next batch's keys: the share
of their variance under the prior that is left, k' Sigma k / k' Sigma_0 k, and
the share of a residual that a layer would leave of such a fact alone,
1 / (1 + k' Sigma k); means over keys, the lowest and the highest layer. Nothing
is optimised or edited: what the priors of end_to_end's and AlphaEdit's configs
have room for in end_to_end's layers, whatever is written.
"""

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags

import jedit
from configs import smollm2_135m
from jedit import checkpoint, condition, prompts, requests, writing
from jedit.editors.descent import lookup_keys
from jedit.models.load import load
from launch import moments
from tests.field_data import FOLDER

_FACTS = flags.DEFINE_integer('facts', 10_000, 'Records, from the first.')
_BATCH = flags.DEFINE_integer('batch', 100, 'Facts conditioned on together.')
_FILE = flags.DEFINE_string(
  'file', 'counterfact_all_short.jsonl.gz', 'Records.'
)
_AT = (0, 100, 500, 1_000, 2_000, 3_000, 5_000, 7_000, 9_900)


def look(root, keys):
  """[N, 2] of one layer: shares of variance, of a residual, before each batch.

  root: [F, r], of the prior; keys: [N, B, F].
  """
  variance = lambda k, root: jnp.sum(
    jnp.matmul(k, root, precision=jax.lax.Precision.HIGHEST) ** 2, -1
  )
  whole = root

  def batch(root, k):
    prior, now = variance(k, whole), variance(k, root)
    there = jnp.any(k != 0, -1)
    mean = lambda x: jnp.sum(jnp.where(there, x, 0)) / there.sum()
    notes = mean(now / jnp.maximum(prior, 1e-30)), mean(1 / (1 + now))
    none = jnp.zeros((len(k), 1))
    root = condition.condition(root, k, none, jnp.ones(len(k)))[1]
    return root, jnp.stack(notes)

  return jax.lax.scan(batch, root, keys)[1]


def main(_):
  config, flat = map(smollm2_135m.get_config, ('end_to_end', 'alphaedit'))
  loaded = load(config.model)
  model, tokenizer = loaded.model, loaded.tokenizer
  params = jax.tree.map(jnp.asarray, loaded.params)
  split = jedit.split(params, *config.layers)
  base = checkpoint.fingerprint(loaded.params)
  moment, _ = moments.get(config, loaded, params, base)
  asked, _ = requests.read(FOLDER / _FILE.value)
  groups, _ = requests.batched(asked[: _FACTS.value], _BATCH.value, 'last')
  texts = writing.contexts(model, params, tokenizer, config.seed)
  batches = prompts.edit_batches(tokenizer, groups, texts, _BATCH.value)
  keys = jax.lax.map(
    lambda batch: lookup_keys(model, split, batch),
    jax.tree.map(jnp.asarray, batches),
  )  # [N, E, B, F]
  kept = {k: flat.editor[k] for k in ('ridge', 'threshold', 'relative')}
  priors = {
    'end_to_end': condition.ridge_prior(moment, config.editor.weight),
    'alphaedit': condition.null_space_prior(moment, **kept)[0],
  }
  for name, prior in priors.items():
    found = [
      np.asarray(jax.jit(look)(jnp.asarray(root), keys[:, e]))
      for e, root in enumerate(prior)
    ]
    print(f'{name}: {[int((r != 0).any(0).sum()) for r in prior]} directions')
    for facts in _AT:
      if facts < _FACTS.value:
        lo, hi = (found[e][facts // _BATCH.value] for e in (0, -1))
        print(
          f'  {facts:>6} facts: variance left {lo[0]:.3f}, {hi[0]:.3f}; of a '
          f'residual {lo[1]:.3f}, {hi[1]:.3f}',
          flush=True,
        )


if __name__ == '__main__':
  app.run(main)
