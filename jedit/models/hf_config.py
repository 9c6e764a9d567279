"""Hugging Face config.json -> Config, strict on what changes the network."""

import re

import transformers
from huggingface_hub.errors import StrictDataclassError

from jedit.models import gpt, llama
from jedit.models.layers import Config
from jedit.types import JeditError

_FAMILIES = {
  'llama': llama,
  'mistral': llama,
  'qwen2': llama,
  'qwen3': llama,
  'gpt2': gpt,
  'gptj': gpt,
}
# Attributes that change the network, with the values jedit implements; what
# config_from_hf reads may have any value.
_REQUIRED = {
  'hidden_act': ('silu', 'swish'),
  'activation_function': ('gelu', 'gelu_new', 'gelu_pytorch_tanh'),
  'add_cross_attention': (False,),
  'scale_attn_weights': (True,),
  'scale_attn_by_inverse_layer_idx': (False,),
  'quantization_config': (None,),
  'rotary': (True,),
  'rope_interleaved': (False,),
  'use_mrope': (False,),
}
_ROPE = {
  'rope_type': ('default', 'linear', 'llama3'),
  'partial_rotary_factor': (1.0,),
}
# Attributes that leave the logits alone: training, text, bookkeeping. So do
# those of a GenerationConfig, and any that has its family's default value.
_INERT = re.compile(
  r'.*(dropout|pdrop)|initializer_range|gradient_checkpointing|summary_.*'
  r'|architectures|_name_or_path|transformers.*|(torch_)?dtype|output_past'
  r'|tokenizer_class|task_specific_params|predict_special_tokens|n_ctx'
  r'|reorder_and_upcast_attn|is_llama_config|unsloth_.*|pretraining_tp'
  r'|layer_types|max_window_layers|use_sliding_window'  # see sliding_window
)


class _Reading(dict):
  """A dict that knows which of its keys were asked for."""

  def __init__(self, *args):
    super().__init__(*args)
    self.read = set()

  def __getitem__(self, key):
    self.read.add(key)
    return super().__getitem__(key)

  def get(self, key, default=None):
    return self[key] if key in self else default


def config(hf: dict) -> Config:
  """Checked Config of a config.json's content (as a dict)."""
  kind = hf.get('model_type')
  if kind not in _FAMILIES:
    known = ', '.join(sorted(_FAMILIES))
    raise JeditError(f'config.json: model_type {kind!r} is not one of {known}')
  try:
    full = _Reading(transformers.AutoConfig.for_model(**hf).to_dict())
  except (ValueError, TypeError, KeyError, StrictDataclassError) as e:
    raise JeditError(f'config.json is not of a {kind} model: {e}') from e
  bad = []
  rope = full.get('rope_parameters') or {}
  for have, rules in ((full, _REQUIRED), (rope, _ROPE)):
    for name, allowed in rules.items():
      if name in have and have[name] not in allowed:
        choice = ', '.join(map(repr, allowed))
        bad.append(f'{name} is {have[name]!r}, jedit has {choice}')
        have[name] = allowed[0]
  out = _FAMILIES[kind].config_from_hf(full)
  default = transformers.AutoConfig.for_model(kind).to_dict()
  known = full.read | {*_REQUIRED, *transformers.GenerationConfig().to_dict()}
  bad += [
    f'{name} is {value!r}, which jedit does not know; remove it if it does '
    'not change the network'
    for name, value in full.items()
    if name not in known
    and not _INERT.fullmatch(name)
    and (name not in default or value != default[name])
  ]
  if bad:
    raise JeditError('config.json: ' + '; '.join(bad))
  return out
