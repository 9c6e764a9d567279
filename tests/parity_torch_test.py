"""Logits and files against transformers' torch models, every family."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
import transformers

from jedit.models import hf, transformer

torch = pytest.importorskip('torch')

_LLAMA3 = {
  'rope_type': 'llama3',
  'rope_theta': 500_000.0,
  'factor': 8.0,
  'low_freq_factor': 1.0,
  'high_freq_factor': 4.0,
  'original_max_position_embeddings': 16,
}
_LINEAR = {'rope_type': 'linear', 'rope_theta': 10_000.0, 'factor': 2.0}
_WIDE = {
  'vocab_size': 97,
  'hidden_size': 48,
  'intermediate_size': 80,
  'num_hidden_layers': 3,
  'num_attention_heads': 4,
  'max_position_embeddings': 64,
  'bos_token_id': 0,
  'eos_token_id': 1,
}
_GPT = {
  'vocab_size': 97,
  'n_embd': 48,
  'n_layer': 3,
  'n_head': 4,
  'n_positions': 64,
  'bos_token_id': 0,
  'eos_token_id': 1,
}
# Family and variant -> (model_type, attributes); _KV -> key-value heads.
_LLAMAS = {
  'llama': ('llama', {}),
  'llama3': ('llama', {'rope_parameters': _LLAMA3, 'head_dim': 16}),
  'llama_linear': ('llama', {'rope_parameters': _LINEAR}),
  'llama_bias': ('llama', {'attention_bias': True, 'mlp_bias': True}),
  'mistral': ('mistral', {'head_dim': 16, 'sliding_window': 40}),
  'qwen2': ('qwen2', {}),
  'qwen3': ('qwen3', {'head_dim': 16}),
  'qwen3_bias': ('qwen3', {'head_dim': 8, 'attention_bias': True}),
}
_GPTS = {
  'gpt2': ('gpt2', {}),
  'gpt2_inner': ('gpt2', {'n_inner': 72, 'activation_function': 'gelu'}),
  'gptj': ('gptj', {'rotary_dim': 8}),
}
_KV = {'mha': 4, 'gqa': 2, 'mqa': 1}
_CASES = [
  pytest.param(
    kind,
    {**_WIDE, **extra, 'num_key_value_heads': n},
    tied,
    id=f'{name}-{heads}-{"tied" if tied else "untied"}',
  )
  for name, (kind, extra) in _LLAMAS.items()
  for heads, n in _KV.items()
  for tied in (True, False)
] + [
  pytest.param(
    kind, {**_GPT, **extra}, tied, id=f'{name}-{"tied" if tied else "untied"}'
  )
  for name, (kind, extra) in _GPTS.items()
  for tied in (True, False)
]


def _network(kind, attributes, tied):
  """A random torch model whose every parameter matters."""
  torch.manual_seed(0)
  config = transformers.AutoConfig.for_model(
    kind, **attributes, tie_word_embeddings=tied
  )
  config._attn_implementation = 'eager'
  network = transformers.AutoModelForCausalLM.from_config(config).eval()
  with torch.no_grad():
    for name, p in network.named_parameters():
      if 'norm' in name or 'ln_' in name:
        p += 0.3 * torch.randn_like(p)  # off their ones and zeros
      elif name.endswith('bias'):
        p += 0.2 * torch.randn_like(p)
      else:
        p.copy_(torch.randn_like(p) * 0.1)
  return network


def _logits(model, params, tokens, length):
  """[R, T, V] of right-padded rows."""
  params = jax.tree.map(jnp.asarray, params)
  rows, width = tokens.shape
  slots = np.broadcast_to(np.arange(width), tokens.shape)
  mask = jnp.asarray(slots < length[:, None])
  at = transformer.layout(mask, jnp.asarray(slots), int(length.sum()) + 3)
  ids = transformer.take(jnp.asarray(tokens).ravel(), at.slot)
  x = model.embed(params, ids, at.positions)
  x, _ = transformer.run(model, params['layers'], x, at)
  return np.asarray(transformer.to_grid(model.logits(params, x), at))


def _same_files(a, b):
  """Every tensor of two folders equal in name, dtype, shape and bytes."""
  a, b = (
    safetensors.numpy.load_file(path / 'model.safetensors') for path in (a, b)
  )
  assert sorted(a) == sorted(b)
  for name in a:
    assert a[name].dtype == b[name].dtype, name
    assert a[name].shape == b[name].shape, name
    assert a[name].tobytes() == b[name].tobytes(), name


@pytest.mark.parametrize('kind, attributes, tied', _CASES)
def test_logits_and_round_trip(kind, attributes, tied, tmp_path):
  network = _network(kind, attributes, tied)
  network.save_pretrained(tmp_path / 'torch')
  model, params = hf.load(tmp_path / 'torch')
  length = np.array([1, 33, 7, 40])
  tokens = np.random.default_rng(1).integers(2, 97, (4, 40)).astype(np.int32)
  mask = np.arange(40) < length[:, None]
  with torch.no_grad():
    want = network(
      input_ids=torch.as_tensor(tokens).long(),
      attention_mask=torch.as_tensor(mask).long(),
    ).logits.numpy()
  got = _logits(model, params, tokens, length)
  assert np.abs(want[mask]).max() > 0.5  # no parity of zeros
  assert np.abs(got - want)[mask].max() < 1e-5

  config = hf.read_config(tmp_path / 'torch')
  hf.save(tmp_path / 'jedit', model, params, config)
  _same_files(tmp_path / 'torch', tmp_path / 'jedit')
  text = [
    (tmp_path / x / 'config.json').read_bytes() for x in ('torch', 'jedit')
  ]
  assert json.loads(text[0]) == json.loads(text[1]) and text[0] == text[1]
  again, info = transformers.AutoModelForCausalLM.from_pretrained(
    tmp_path / 'jedit', output_loading_info=True
  )
  assert not info['missing_keys'] and not info['unexpected_keys']
  for name, value in network.state_dict().items():
    assert torch.equal(value, again.state_dict()[name]), name


@pytest.mark.parametrize('kind', ['gpt2', 'gptj', 'llama', 'qwen3'])
@pytest.mark.parametrize('dtype', ['bfloat16', 'float16'])
def test_half_precision_round_trip(kind, dtype, tmp_path):
  llama = {**_WIDE, 'num_key_value_heads': 2}
  attributes = _GPT if kind.startswith('gpt') else llama
  extra = {'rotary_dim': 8} if kind == 'gptj' else {}
  network = _network(kind, {**attributes, **extra}, kind != 'llama')
  network.to(getattr(torch, dtype)).save_pretrained(tmp_path / 'torch')
  model, params = hf.load(tmp_path / 'torch')
  assert {str(x.dtype) for x in jax.tree.leaves(params)} == {dtype}
  params = transformer.join(transformer.split(params, 1, 1))
  config = hf.read_config(tmp_path / 'torch')
  hf.save(tmp_path / 'jedit', model, params, config)
  _same_files(tmp_path / 'torch', tmp_path / 'jedit')
  assert hf.read_config(tmp_path / 'jedit') == config
  again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / 'jedit')
  assert again.dtype == getattr(torch, dtype)


def test_an_edited_model_agrees_with_torch(tmp_path):
  network = _network('llama', {**_WIDE, 'num_key_value_heads': 2}, True)
  network.save_pretrained(tmp_path / 'torch')
  model, params = hf.load(tmp_path / 'torch')
  params = transformer.split(params, 1, 1)
  delta = np.random.default_rng(0).normal(size=(1, 80, 48)).astype(np.float32)
  params['site']['mlp']['down']['kernel'] += 0.1 * delta
  params = transformer.join(params)
  hf.save(tmp_path / 'jedit', model, params, hf.read_config(tmp_path / 'torch'))
  edited = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / 'jedit')
  tokens = np.arange(2, 22, dtype=np.int32)[None]
  with torch.no_grad():
    want = edited(torch.as_tensor(tokens).long()).logits.numpy()
    before = network(torch.as_tensor(tokens).long()).logits.numpy()
  got = _logits(model, params, tokens, np.array([20]))
  assert np.abs(want - before).max() > 0.1
  assert np.abs(got - want).max() < 1e-5
