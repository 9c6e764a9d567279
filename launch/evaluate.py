"""Scores a model on a request set.

  python -m launch.evaluate --config=configs/smollm2_135m.py \\
    --config.params=runs/a --config.requests=facts.jsonl
"""

import json

import jax
import jax.numpy as jnp

from jedit import metrics
from jedit.models.load import load
from launch import common, measure

_CONFIG = common.config_flag()


def main(_):
  config = _CONFIG.value
  path = config.requests or common.FACTS
  source = config.params or config.model
  loaded = load(source)
  asked, skipped = common.read_requests(config, path, loaded)
  for line in skipped:
    common.say(f'skipped: {line}')
  params = jax.tree.map(jnp.asarray, loaded.params)
  judge = measure.measurer(loaded, asked, config.rendering)
  table = judge.table(params, source)
  common.say(
    f'{source}, {len(asked)} records of {path}, percent (95 % interval)'
  )
  for protocol in metrics.PROTOCOLS:
    row, ends = table['counterfact'][protocol], table['intervals'][protocol]
    cells = ', '.join(
      f'{k} -'
      if v is None
      else '{} {:.2f} ({:.1f}-{:.1f})'.format(k, v, *ends[k])
      for k, v in row.items()
    )
    common.say(f'CounterFact, {protocol}: {cells}')
  common.say(json.dumps({'metrics': table, 'compat': 'memit-2022'}))


if __name__ == '__main__':
  common.run(main)
