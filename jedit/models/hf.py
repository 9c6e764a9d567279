"""Hugging Face folders <-> params: data driven, strict, in both directions."""

import json
import os
import pathlib
import shutil
from collections.abc import Callable, Iterator, Mapping

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.flax
import transformers

from jedit.models import gpt, llama
from jedit.models.layers import Config
from jedit.models.transformer import Model, build
from jedit.types import JeditError, Params

_FAMILIES = {
  'llama': (llama.config_from_hf, llama.TABLE),
  'mistral': (llama.config_from_hf, llama.TABLE),
  'qwen2': (llama.config_from_hf, llama.TABLE),
  'qwen3': (llama.config_from_hf, llama.TABLE),
  'gpt2': (gpt.config_from_hf, gpt.GPT2_TABLE),
  'gptj': (gpt.config_from_hf, gpt.GPTJ_TABLE),
}
# Attributes that change the network, with the values our blocks implement.
# What is neither here nor read by config_from_hf does not touch inference.
_REQUIRED = {
  'hidden_act': ('silu',),
  'activation_function': ('gelu', 'gelu_new'),
  'add_cross_attention': (False,),
  'scale_attn_weights': (True,),
  'scale_attn_by_inverse_layer_idx': (False,),
  'quantization_config': (None,),
  'pretraining_tp': (1,),
}
# Buffers of old checkpoints; they hold no parameter.
_BUFFERS = ('attn.bias', 'attn.masked_bias', 'rotary_emb.inv_freq')
_SHARD = 'model.safetensors.index.json'


def config(hf: dict) -> Config:
  """Checked Config of a config.json's content (as a dict)."""
  kind = hf.get('model_type')
  if kind not in _FAMILIES:
    known = ', '.join(sorted(_FAMILIES))
    raise JeditError(f'config.json: model_type {kind!r} is not one of {known}')
  full = transformers.AutoConfig.for_model(**hf).to_dict()
  bad = [
    f'{name} is {full[name]!r}, jedit has {allowed}'
    for name, allowed in _REQUIRED.items()
    if name in full and full[name] not in allowed
  ]
  rope = full.get('rope_parameters') or {}
  if rope.get('rope_type', 'default') not in ('default', 'linear', 'llama3'):
    bad.append(f'rope_type {rope["rope_type"]!r}: jedit has default, linear, llama3')
  if rope.get('partial_rotary_factor', 1.0) != 1.0:
    bad.append('partial_rotary_factor: jedit rotates whole heads')
  unknown = set(hf) - set(full) - {'torch_dtype', 'transformers_version'}
  default = transformers.AutoConfig.for_model(kind).to_dict()
  unknown |= {k for k in hf if k not in default and k not in _HARMLESS}
  if unknown:
    bad.append(f'unknown attributes {sorted(unknown)}')
  if bad:
    raise JeditError('config.json: ' + '; '.join(bad))
  return _FAMILIES[kind][0](full)


_HARMLESS = {
  *('torch_dtype', 'dtype', 'transformers_version', 'model_type', '_name_or_path'),
  *('rope_theta', 'rope_scaling', 'rope_parameters', 'is_llama_config'),
  *('rope_interleaved', 'transformers.js_config', 'task_specific_params'),
  *('summary_type', 'summary_use_proj', 'summary_activation'),
  *('summary_proj_to_labels', 'summary_first_dropout', 'gradient_checkpointing'),
  *('rotary', 'n_ctx', 'max_window_layers', 'layer_types', 'architectures'),
  *('use_cache', 'tokenizer_class', 'head_dim', 'auto_map', 'unsloth_fixed'),
  *('tie_word_embeddings', 'mlp_bias', 'attention_bias', 'predict_special_tokens'),
  *('bos_token_id', 'eos_token_id', 'pad_token_id', 'scale_attn_weights'),
}


def table(kind: str, model: Model) -> dict[str, tuple[str, int | None, bool]]:
  """Published name -> (path, layer or None, transpose?), all that must exist."""
  shapes = jax.eval_shape(model.init, jax.random.key(0))
  paths = set(flatten(shapes))
  out = {}
  for name, (path, transpose) in _FAMILIES[kind][1].items():
    if path not in paths:
      continue
    if '{}' in name:
      for layer in range(model.config.num_layers):
        out[name.format(layer)] = path, layer, transpose
    else:
      out[name] = path, None, transpose
  missing = paths - {path for path, _, _ in out.values()}
  assert not missing, f'the table of {kind} lacks {sorted(missing)}'
  return out


def flatten(params: Params, prefix: str = '') -> dict[str, jax.Array]:
  """Nested dict -> {'a/b/c': leaf}."""
  out = {}
  for name, value in params.items():
    if isinstance(value, Mapping):
      out |= flatten(value, f'{prefix}{name}/')
    else:
      out[prefix + name] = value
  return out


def unflatten(flat: Mapping[str, jax.Array]) -> Params:
  """Undoes flatten."""
  out: Params = {}
  for path, value in flat.items():
    *parents, leaf = path.split('/')
    node = out
    for name in parents:
      node = node.setdefault(name, {})
    node[leaf] = value
  return out


def from_tensors(
  kind: str, model: Model, names: set[str], get: Callable[[str], np.ndarray]
) -> Params:
  """Params from published tensors; every mismatch in one error."""
  rows = table(kind, model)
  shapes = flatten(jax.eval_shape(model.init, jax.random.key(0)))
  surplus = {n for n in names - set(rows) if not n.endswith(_BUFFERS)}
  if model.config.tied:
    surplus.discard('lm_head.weight')
  bad = [f'no tensor {name}' for name in sorted(set(rows) - names)]
  bad += [f'unknown tensor {name}' for name in sorted(surplus)]
  flat: dict[str, np.ndarray] = {}
  for name, (path, layer, transpose) in rows.items():
    if name not in names:
      continue
    tensor = get(name)
    tensor = tensor.T if transpose else tensor
    want = shapes[path].shape if layer is None else shapes[path].shape[1:]
    if tensor.shape != want:
      bad.append(f'{name} gives {tensor.shape}, the config wants {want}')
    elif layer is None:
      flat[path] = np.ascontiguousarray(tensor)
    else:
      if path not in flat:
        flat[path] = np.empty(shapes[path].shape, tensor.dtype)
      flat[path][layer] = tensor
  if bad:
    more = f' and {len(bad) - 8} more' if len(bad) > 8 else ''
    raise JeditError('weights do not fit config.json: ' + '; '.join(bad[:8]) + more)
  return unflatten(flat)


def to_tensors(
  kind: str, model: Model, params: Params
) -> Iterator[tuple[str, np.ndarray]]:
  """Published (name, tensor) pairs of unsplit params."""
  flat = flatten(params)
  for name, (path, layer, transpose) in table(kind, model).items():
    tensor = np.asarray(flat[path] if layer is None else flat[path][layer])
    yield name, np.ascontiguousarray(tensor.T if transpose else tensor)


def read_config(folder: str | os.PathLike) -> dict:
  """config.json of a folder, checked to be one."""
  path = pathlib.Path(folder) / 'config.json'
  if not path.is_file():
    raise JeditError(f'{folder}: no config.json; give a Hugging Face folder')
  try:
    return json.loads(path.read_text())
  except ValueError as e:
    raise JeditError(f'{path} is not JSON: {e}') from e


def load(folder: str | os.PathLike) -> tuple[Model, Params]:
  """Model and params (their dtype kept, NumPy) of a safetensors folder."""
  folder = pathlib.Path(folder)
  hf = read_config(folder)
  model = build(config(hf))
  files = sorted(folder.glob('*.safetensors'))
  if not files:
    raise JeditError(f'{folder}: no *.safetensors file; convert it with '
                     'transformers (save_pretrained) first')
  where, handles = {}, []
  for path in files:
    try:
      handle = safetensors.safe_open(path, framework='flax')
    except safetensors.SafetensorError as e:
      raise JeditError(f'{path} is damaged: {e}; fetch it again') from e
    handles.append(handle)
    where |= dict.fromkeys(handle.keys(), handle)
  kind = hf['model_type']
  strip = kind == 'gpt2' and 'wte.weight' in where  # the hub's oldest folders
  if strip:
    where = {f'transformer.{name}': h for name, h in where.items()}
  bare = lambda name: name.removeprefix('transformer.') if strip else name
  get = lambda name: np.asarray(where[name].get_tensor(bare(name)))
  return model, from_tensors(kind, model, set(where), get)


def save(
  folder: str | os.PathLike, model: Model, params: Params, hf: dict, tokenizer=None
) -> None:
  """Writes a folder that transformers loads; whole or not at all."""
  folder = pathlib.Path(folder)
  if folder.exists():
    raise JeditError(f'{folder} exists; name a new folder')
  part = folder.with_name(folder.name + '.part')
  shutil.rmtree(part, ignore_errors=True)
  part.mkdir(parents=True)
  tensors = dict(to_tensors(hf['model_type'], model, params))
  dtype = str(tensors[next(iter(tensors))].dtype)
  hf = {k: v for k, v in hf.items() if k not in ('torch_dtype', 'dtype')}
  hf['dtype'] = dtype
  safetensors.flax.save_file(
    {k: jnp.asarray(v) for k, v in tensors.items()},
    part / 'model.safetensors', metadata={'format': 'pt'},
  )
  (part / 'config.json').write_text(json.dumps(hf, indent=2) + '\n')
  if tokenizer is not None:
    tokenizer.save_pretrained(part)
  part.rename(folder)
