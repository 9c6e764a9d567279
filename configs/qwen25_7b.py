"""Qwen2.5-7B; hyper-parameters of EasyEdit's published files.

Those of AlphaEdit are from its file for Qwen2.5-7B-Instruct; for EMMET none are
published.
"""

from configs import base


def get_config(method='alphaedit'):
  """Of a method; base.parse says how one is named."""
  return base.get_config(
    method,
    model='Qwen/Qwen2.5-7B',
    layers=(4, 8),
    optimiser={'steps': 25, 'lr': 0.5, 'weight_decay': 0.001, 'clamp': 4.0},
    methods={
      'fine_tune': {'layers': (27, 27)},
      'alphaedit': {'threshold': 0.02, 'ridge': 1.0},
      'memit': {'weight': 15_000.0},
      'rome': {'batch_size': 1, 'layers': (5, 5)},
      'emmet': {'layers': (5, 5)},
    },
  )
