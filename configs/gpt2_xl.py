"""GPT-2 XL; hyper-parameters of MEMIT's and AlphaEdit's published files."""

from configs import base


def get_config(method='alphaedit'):
  """alphaedit, memit, memit_history."""
  return base.get_config(
    method,
    model='openai-community/gpt2-xl',
    layers=(13, 17),
    optimiser={'steps': 20, 'lr': 0.5, 'weight_decay': 0.5, 'clamp': 0.75},
    methods={
      'alphaedit': {'threshold': 0.02, 'ridge': 10.0},
      'memit': {'weight': 20_000.0},
    },
  )
