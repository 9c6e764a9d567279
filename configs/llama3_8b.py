"""Llama-3-8B; hyper-parameters of AlphaEdit's published files.

Those of ROME are EasyEdit's; for EMMET none are published.
"""

from configs import base


def get_config(method='alphaedit'):
  """Of a method; base.parse says how one is named."""
  return base.get_config(
    method,
    model='meta-llama/Meta-Llama-3-8B',
    layers=(4, 8),
    optimiser={'steps': 25, 'lr': 0.1, 'weight_decay': 0.5, 'clamp': 0.75},
    methods={
      'fine_tune': {'layers': (21, 21)},
      'alphaedit': {'threshold': 0.02, 'ridge': 10.0},
      'alphaedit+blue': {'ridge': 1.0},
      'alphaedit_plus': {'threshold': 0.015, 'gain': 1.8e-4},
      'memit': {'weight': 15_000.0},
      'rome': {
        'batch_size': 1,
        'layers': (5, 5),
        'optimiser': {'lr': 0.5, 'weight_decay': 0.001},
      },
      'emmet': {'layers': (5, 5)},
    },
  )
