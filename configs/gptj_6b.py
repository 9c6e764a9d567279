"""GPT-J-6B; hyper-parameters of the methods' published files."""

from configs import base


def get_config(method='alphaedit'):
  """Of a method; base.parse says how one is named."""
  return base.get_config(
    method,
    model='EleutherAI/gpt-j-6b',
    layers=(3, 8),
    optimiser={'steps': 25, 'lr': 0.5, 'weight_decay': 0.5, 'clamp': 0.75},
    methods={
      'fine_tune': {'layers': (21, 21)},
      'ft_l': {'layers': (0, 0), 'limit': 5e-5},
      'alphaedit': {'threshold': 0.02, 'ridge': 10.0},
      'alphaedit+blue': {'ridge': 95.0},
      'alphaedit_plus': {'threshold': 0.017, 'gain': 1.2e-4},
      'pmet': {'weight': 6000.0},
      'ultraedit': {'layers': (18, 26)},
      'mend': {'layers': (25, 27)},
      'memit': {'weight': 15_000.0},
      'rome': {
        'batch_size': 1,
        'layers': (5, 5),
        'optimiser': {'steps': 20},
      },
      'emmet': {'layers': (5, 5)},
    },
  )
