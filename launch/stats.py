"""Makes the second moments of a config's site layers, and keeps them.

  python -m launch.stats --config=configs/smollm2_135m.py:memit \\
    --config.corpus=wikipedia.jsonl.gz

launch.edit with the same config finds them.
"""

import numpy as np
from ml_collections import ConfigDict

from jedit import checkpoint, spectrum
from launch import common, devices, moments

_CONFIG = common.config_flag()


def main(_):
  with devices.use(_CONFIG.value):
    run(_CONFIG.value)


def run(config: ConfigDict) -> None:
  loaded = devices.load(config, config.model)
  lo, hi = common.check_layers(config, loaded)
  params = devices.put(config, loaded)
  base_hash = checkpoint.fingerprint(loaded.params)
  moment, seconds = moments.get(config, loaded, params, base_hash)
  common.say(f'{int(moment.count)} tokens in {seconds:.1f} s; eigenvalues:')
  common.say(
    f'{"layer":>5}{"least":>12}{"median":>12}{"most":>12}{"< 0.02":>9}'
  )
  found = spectrum.of(moment)
  for layer, (v, _) in zip(range(lo, hi + 1), found, strict=True):
    common.say(
      f'{layer:>5}{v[0]:>12.3g}{np.median(v):>12.3g}{v[-1]:>12.3g}'
      f'{np.mean(v < 0.02):>9.1%}'
    )


if __name__ == '__main__':
  common.run(main)
