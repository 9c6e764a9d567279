"""Scores a model on a request set.

  python -m launch.evaluate --config=configs/smollm2_135m.py \\
    --config.params=runs/a --config.requests=facts.jsonl
"""

import json

from ml_collections import ConfigDict

from jedit import requests
from launch import common, devices, folder, measure, method

_CONFIG = common.config_flag()


def main(_):
  with devices.use(_CONFIG.value):
    run(_CONFIG.value)


def run(config: ConfigDict) -> None:
  method.check(config)
  path = config.requests or common.FACTS
  source = config.params or config.model
  loaded = devices.load(config, source)
  ask = config.copy_and_resolve_references()
  ask.lookup = 'last'  # nothing is edited: no subject is needed
  asked, skipped = common.read_requests(ask, path, loaded)
  asked = requests.as_edited(asked, config.batch_size, config.on_collision)
  for line in skipped:
    common.say(f'skipped: {line}')
  params = devices.put(config, loaded)
  judge = measure.measurer(config, loaded, asked)
  measured = judge.after(params, None).metrics
  common.say(
    f'{source}, {len(judge.sample)} records of {path}: percent, and their 95 % '
    'intervals, by the evaluation that is named'
  )
  folder.show_metrics({'it': measured})
  common.say(json.dumps({'metrics': measured, 'compat': 'memit-2022'}))


if __name__ == '__main__':
  common.run(main)
