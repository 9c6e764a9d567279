"""GPT-2 XL; hyper-parameters of the methods' published files."""

from configs import base


def get_config(method='alphaedit'):
  """Of a method; base.parse says how one is named."""
  return base.get_config(
    method,
    model='openai-community/gpt2-xl',
    layers=(13, 17),
    optimiser={'steps': 20, 'lr': 0.5, 'weight_decay': 0.5, 'clamp': 0.75},
    methods={
      'fine_tune': {'layers': (1, 1)},
      'ft_l': {'layers': (0, 0), 'limit': 5e-4},
      'alphaedit': {'threshold': 0.02, 'ridge': 10.0},
      'alphaedit+blue': {'ridge': 80.0},
      'alphaedit_plus': {'threshold': 0.015, 'gain': 3e-4},
      'mend': {'layers': (45, 47)},
      'memit': {'weight': 20_000.0},
      'rome': {
        'batch_size': 1,
        'layers': (17, 17),
      },
      'emmet': {'layers': (17, 17), 'weight': 1000.0},
    },
  )
