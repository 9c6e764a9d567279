"""Llama-2-7B; hyper-parameters of EasyEdit's published files.

There is no AlphaEdit file for this model: threshold and ridge are those of
AlphaEdit for Llama-3-8B.
"""

from configs import base


def get_config(method='alphaedit'):
  """Of a method; base.parse says how one is named."""
  return base.get_config(
    method,
    model='meta-llama/Llama-2-7b-hf',
    layers=(4, 8),
    optimiser={'steps': 25, 'lr': 0.5, 'weight_decay': 0.001, 'clamp': 4.0},
    methods={
      'fine_tune': {'layers': (21, 21)},
      'alphaedit': {'threshold': 0.02, 'ridge': 10.0},
      'pmet': {
        'optimiser': {
          'steps': 20,
          'lr': 0.5,
          'clamp': 1.0,
          'kl_factor': 0.0625,
        },
      },
      'memit': {'weight': 15_000.0},
      'rome': {'batch_size': 1, 'layers': (5, 5)},
      'emmet': {'layers': (5, 5)},
    },
  )
