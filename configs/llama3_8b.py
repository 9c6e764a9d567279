"""Llama-3-8B; hyper-parameters of AlphaEdit's published files."""

from configs import base


def get_config(method='alphaedit'):
  """alphaedit, memit, memit_history."""
  return base.get_config(
    method,
    model='meta-llama/Meta-Llama-3-8B',
    layers=(4, 8),
    optimiser={'steps': 25, 'lr': 0.1, 'weight_decay': 0.5, 'clamp': 0.75},
    methods={
      'alphaedit': {'threshold': 0.02, 'ridge': 10.0},
      'memit': {'weight': 15_000.0},
    },
  )
