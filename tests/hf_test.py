"""Hugging Face folders: strict when read, whole when written."""

import json

import chex
import jax
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from jedit.models import hf, transformer
from jedit.types import JeditError

_CONFIG = {
  'model_type': 'llama',
  'vocab_size': 31,
  'hidden_size': 16,
  'intermediate_size': 24,
  'num_hidden_layers': 2,
  'num_attention_heads': 4,
  'num_key_value_heads': 2,
  'max_position_embeddings': 64,
  'torch_dtype': 'float32',
}
_DOWN = 'model.layers.{}.mlp.down_proj.weight'


def _params(config=_CONFIG, dtype=np.float32):
  model = transformer.build(hf.config(config))
  params = jax.device_get(model.init(jax.random.key(0)))
  return model, jax.tree.map(lambda x: x.astype(dtype), params)


@pytest.fixture
def folder(tmp_path):
  model, params = _params()
  hf.save(tmp_path / 'm', model, params, _CONFIG)
  return tmp_path / 'm'


def _rewrite(folder, change):
  path = folder / 'model.safetensors'
  tensors = safetensors.numpy.load_file(path)
  change(tensors)
  safetensors.numpy.save_file(tensors, path)


def _config(folder, **changes):
  (folder / 'config.json').write_text(json.dumps({**_CONFIG, **changes}))


def test_round_trip_in_shards(folder):
  _, want = _params()
  tensors = safetensors.numpy.load_file(folder / 'model.safetensors')
  (folder / 'model.safetensors').unlink()
  names = sorted(tensors)
  shards = {'a-1.safetensors': names[::2], 'a-2.safetensors': names[1::2]}
  for file, part in shards.items():
    safetensors.numpy.save_file({n: tensors[n] for n in part}, folder / file)
  (folder / 'consolidated.safetensors').write_bytes(b'a copy, not in the index')
  index = {n: file for file, part in shards.items() for n in part}
  path = folder / 'model.safetensors.index.json'
  path.write_text(json.dumps({'weight_map': index}))
  _, params = hf.load(folder)
  chex.assert_trees_all_equal(params, want)
  assert all(isinstance(x, np.ndarray) for x in jax.tree.leaves(params))
  (folder / 'a-2.safetensors').unlink()
  with pytest.raises(JeditError, match='a-2.safetensors is missing'):
    hf.load(folder)
  for text in '{"weight_map": {"a', '{}', '[]':
    path.write_text(text)
    with pytest.raises(JeditError, match='index.json is damaged'):
      hf.load(folder)


def test_the_oldest_gpt2_folders_have_no_prefix(tmp_path):
  config = {
    'model_type': 'gpt2', 'vocab_size': 31, 'n_embd': 16, 'n_layer': 2,
    'n_head': 4, 'n_positions': 64,
  }  # fmt: skip
  model, want = _params(config)
  hf.save(tmp_path / 'm', model, want, config)

  def old(tensors):
    for name in list(tensors):
      tensors[name.removeprefix('transformer.')] = tensors.pop(name)
    tensors['h.0.attn.bias'] = np.ones((1, 1, 64, 64), np.float32)

  _rewrite(tmp_path / 'm', old)
  chex.assert_trees_all_equal(hf.load(tmp_path / 'm')[1], want)


def test_every_mismatch_is_named_at_once(folder):
  def change(tensors):
    del tensors[_DOWN.format(1)]
    tensors['model.layers.0.mlp.extra.weight'] = np.zeros(3, np.float32)
    tensors['model.norm.weight'] = np.zeros(17, np.float32)
    tensors[_DOWN.format(0)] = np.zeros((24, 16), np.float32)

  _rewrite(folder, change)
  with pytest.raises(JeditError) as e:
    hf.load(folder)
  for part in (
    'no tensor ' + _DOWN.format(1),
    'unknown tensor model.layers.0.mlp.extra.weight',
    'model.norm.weight is (17,), the config wants (16,)',
    _DOWN.format(0) + ' is (24, 16), the config wants (16, 24)',
    'use the config.json and all the files of one checkpoint',
  ):
    assert part in str(e.value)


def test_dtypes_that_are_not_weights_are_refused(folder):
  def change(tensors):
    tensors['model.norm.weight'] = np.zeros(16, np.int8)
    name = _DOWN.format(1)
    tensors[name] = tensors[name].astype(ml_dtypes.bfloat16)

  _rewrite(folder, change)
  with pytest.raises(JeditError, match='norm.weight is I8.*bfloat16, its la'):
    hf.load(folder)


@pytest.mark.parametrize(
  'changes, words',
  [
    ({'model_type': 'mamba'}, "model_type 'mamba' is not one of gpt2, gptj"),
    ({'hidden_act': 'relu'}, "hidden_act is 'relu', jedit has 'silu'"),
    (
      {'rope_scaling': {'rope_type': 'yarn', 'factor': 2.0}},
      "rope_type is 'yarn', jedit has 'default', 'linear', 'llama3'",
    ),
    ({'partial_rotary_factor': 0.5}, 'partial_rotary_factor is 0.5'),
    (
      {'quantization_config': {'quant_method': 'gptq', 'bits': 4}},
      'quantization_config is .*gptq',
    ),
    ({'residual_multiplier': 0.2}, 'residual_multiplier is 0.2, which jedit'),
    ({'auto_map': {'AutoModel': 'm.M'}}, 'auto_map is .*remove it'),
    ({'hidden_size': 'wide'}, 'not of a llama model.*hidden_size'),
    ({'hidden_size': 18}, 'not of a llama model'),
  ],
)
def test_configs_of_other_networks_are_refused(folder, changes, words):
  _config(folder, **changes)
  with pytest.raises(JeditError, match=r'(?s)config.json.*' + words):
    hf.load(folder)


def test_all_that_is_wrong_with_a_config_in_one_message():
  with pytest.raises(JeditError) as e:
    hf.config(
      {**_CONFIG, 'hidden_act': 'gelu', 'mystery': 1, 'quantization_config': {}}
    )
  for word in ('hidden_act', 'mystery', 'quantization_config'):
    assert word in str(e.value)


def test_what_does_not_change_the_network_is_accepted():
  inert = {
    'architectures': ['LlamaForCausalLM'],
    '_name_or_path': 'x',
    'attention_dropout': 0.1,
    'initializer_range': 0.5,
    'use_cache': False,
    'max_length': 4096,
    'bos_token_id': 7,
    'pretraining_tp': 2,
    'transformers_version': '4.0',
    'quantization_config': None,
  }
  assert hf.config({**_CONFIG, **inert}) == hf.config(_CONFIG)


def test_damaged_and_missing_files(folder, tmp_path):
  weights = folder / 'model.safetensors'
  whole = weights.read_bytes()
  for broken in (whole[:-7], whole[:5], b''):
    weights.write_bytes(broken)
    with pytest.raises(JeditError, match='damaged.*fetch the folder again'):
      hf.load(folder)
  weights.unlink()
  with pytest.raises(JeditError, match='no .*safetensors file; convert'):
    hf.load(folder)
  (folder / 'config.json').write_text('{')
  with pytest.raises(JeditError, match='is not JSON'):
    hf.load(folder)
  with pytest.raises(JeditError, match='no config.json; give a Hugging Face'):
    hf.load(tmp_path / 'nowhere')


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_save_keeps_the_config(tmp_path, dtype):
  model, params = _params(dtype=dtype)
  for name in ('a', 'b'):
    config = _CONFIG if name == 'a' else hf.read_config(tmp_path / 'a')
    hf.save(tmp_path / name, model, params, config)
  read = hf.read_config(tmp_path / 'a')
  assert read == {**_CONFIG, 'torch_dtype': dtype}
  assert list(read) == list(_CONFIG)
  for file in ('config.json', 'model.safetensors'):
    assert (tmp_path / 'a' / file).read_bytes() == (
      tmp_path / 'b' / file
    ).read_bytes()


def test_save_leaves_nothing_half_written(tmp_path):
  model, params = _params()

  class Tokenizer:
    def save_pretrained(self, folder):
      raise KeyboardInterrupt

  with pytest.raises(KeyboardInterrupt):
    hf.save(tmp_path / 'm', model, params, _CONFIG, Tokenizer())
  assert not list(tmp_path.iterdir())
  hf.save(tmp_path / 'm', model, params, _CONFIG)
  with pytest.raises(JeditError, match='exists; name a new folder'):
    hf.save(tmp_path / 'm', model, params, _CONFIG)
  assert [p.name for p in tmp_path.iterdir()] == ['m']


def test_an_edit_survives_save_and_load(tmp_path):
  model, params = _params(dtype=ml_dtypes.bfloat16)
  parts = transformer.split(params, 1, 1)
  parts['site']['mlp']['down']['kernel'] += 0.5
  edited = transformer.join(parts)
  hf.save(tmp_path / 'm', model, edited, _CONFIG)
  again_model, again = hf.load(tmp_path / 'm')
  assert again_model.config == model.config
  chex.assert_trees_all_equal(again, edited)
  change = again['layers']['mlp']['down']['kernel'].astype(np.float32)
  change -= params['layers']['mlp']['down']['kernel'].astype(np.float32)
  assert not change[0].any() and np.abs(change[1] - 0.5).max() < 0.01
