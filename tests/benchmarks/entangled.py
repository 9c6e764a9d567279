"""How alike are the values of different facts? AdaEdit's Figure 3.

  python -m tests.benchmarks.entangled --facts=200

Mean absolute cosine between the values of different facts at the last site
layer, lookup token, plain prompt: before any optimisation (state) of what its
MLP adds (ffn), of what its attention adds (mhsa) and of its output (block); and
of v*, which each fact's target was optimised to on the base model (MEMIT's, of
the block's output; PMET's and AdaEdit's, of the MLP's beside the attention's).
"""

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags

import jedit
from configs import smollm2_135m
from jedit import prompts, requests, values, writing
from jedit.models.load import load
from jedit.rows import enter
from jedit.suffix import enter_above, values_of
from tests.field_data import FOLDER

_FACTS = flags.DEFINE_integer('facts', 200, 'Records, from the first.')
_BATCH = flags.DEFINE_integer('batch', 20, 'Facts optimised together.')
_FILE = flags.DEFINE_string('file', 'counterfact_full_500.jsonl.gz', 'Records.')


def states(model, params, batch):
  """[B, D] each: what MLP and attention add to the lookup token, the sum."""
  rows = enter(model, params, batch)
  lookup = enter_above(model, params, rows, batch, 'mlp+attention')[2]
  ffn, mhsa = jnp.unstack(values_of(lookup)[:, 0], axis=1)
  return {'ffn': ffn, 'mhsa': mhsa, 'block': lookup.out[:, 0]}


def cosine(x: np.ndarray) -> float:
  """Mean |cos| of different rows."""
  x = np.asarray(x, np.float64)
  x /= np.linalg.norm(x, axis=1, keepdims=True)
  return float(np.abs(x @ x.T)[~np.eye(len(x), dtype=bool)].mean())


def main(_):
  config, size = smollm2_135m.get_config(), _BATCH.value
  loaded = load(config.model)
  model, tokenizer = loaded.model, loaded.tokenizer
  params = jax.tree.map(jnp.asarray, loaded.params)
  split = jedit.split(params, *config.layers)
  asked, _ = requests.read(FOLDER / _FILE.value)
  asked = asked[: _FACTS.value]
  groups = [asked[i : i + size] for i in range(0, len(asked), size)]
  texts = writing.contexts(model, params, tokenizer, config.seed)
  batches = prompts.edit_batches(tokenizer, groups, texts, size)

  def measure(name, function):
    parts = jax.lax.map(function, jax.tree.map(jnp.asarray, batches))
    for part, x in parts.items():
      x = np.asarray(x)[batches.valid]
      print(f'{name} {part:<6} {cosine(x):.4f}', flush=True)

  measure('state', lambda batch: states(model, split, batch))
  for name, point in (('block', 'block'), ('ffn', 'mlp+attention')):
    given = config.optimiser.to_dict() | {'point': point}
    engine = values.optimiser(model, **given)

    def optimised(batch, name=name, engine=engine):
      rows = enter(model, split, batch)
      return {name: engine.run(split, rows, batch, ()).value}

    measure('v*   ', optimised)


if __name__ == '__main__':
  app.run(main)
