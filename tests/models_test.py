"""The families: shapes, variants and rotary frequencies by themselves."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jedit.models import hf, layers, transformer

_LLAMA = {
  'model_type': 'llama',
  'vocab_size': 61,
  'hidden_size': 32,
  'intermediate_size': 48,
  'num_hidden_layers': 2,
  'num_attention_heads': 4,
  'num_key_value_heads': 2,
}
_GPT = {'vocab_size': 61, 'n_embd': 32, 'n_layer': 2, 'n_head': 4}


def _shapes(config):
  model = transformer.build(hf.config(config))
  shapes = jax.eval_shape(model.init, jax.random.key(0))
  return {name: x.shape for name, x in hf.flatten(shapes).items()}


@pytest.mark.parametrize(
  'config, there, absent',
  [
    (_LLAMA, ['head/kernel'], ['layers/attn/q/bias', 'layers/mlp/up/bias']),
    ({**_LLAMA, 'tie_word_embeddings': True}, [], ['head/kernel']),
    (
      {**_LLAMA, 'attention_bias': True},
      ['layers/attn/q/bias', 'layers/attn/out/bias'],
      ['layers/mlp/down/bias'],
    ),
    ({**_LLAMA, 'mlp_bias': True}, ['layers/mlp/down/bias'], []),
    (
      {**_LLAMA, 'model_type': 'qwen2'},
      ['layers/attn/v/bias'],
      ['layers/attn/out/bias'],
    ),
    (
      {**_LLAMA, 'model_type': 'qwen3'},
      ['layers/attn/q_norm/scale', 'layers/attn/k_norm/scale'],
      ['layers/attn/q/bias'],
    ),
    (
      {**_GPT, 'model_type': 'gpt2'},
      ['embed/positions', 'layers/attn/qkv/bias', 'layers/mlp_norm/bias'],
      ['head/kernel'],
    ),
    (
      {**_GPT, 'model_type': 'gptj', 'rotary_dim': 4},
      ['head/kernel', 'head/bias', 'layers/mlp/down/bias'],
      ['embed/positions', 'layers/mlp_norm/scale', 'layers/attn/q/bias'],
    ),
    (
      {
        **_GPT,
        'model_type': 'gptj',
        'rotary_dim': 4,
        'tie_word_embeddings': True,
      },
      ['head/bias'],
      ['head/kernel'],
    ),
  ],
)
def test_which_parameters_exist(config, there, absent):
  shapes = _shapes(config)
  assert set(there) <= set(shapes)
  assert not set(absent) & set(shapes)
  kernel = shapes['layers/mlp/down/kernel']
  assert kernel == (2, config.get('intermediate_size', 128), 32)


def _config(**changes):
  return layers.Config(
    **{
      'family': 'llama',
      'vocab_size': 8,
      'width': 16,
      'mlp_width': 8,
      'num_layers': 1,
      'num_heads': 2,
      'num_kv_heads': 2,
      'head_dim': 8,
      'context_length': 64,
      'norm_eps': 1e-6,
      'tied': True,
      'rotary_dim': 8,
      **changes,
    }
  )


def test_llama3_scaling_keeps_high_and_divides_low_frequencies():
  plain = layers.inverse_frequencies(_config(head_dim=64, rotary_dim=64))
  scaling = {
    'rope_type': 'llama3',
    'factor': 8.0,
    'low_freq_factor': 1.0,
    'high_freq_factor': 4.0,
    'original_max_position_embeddings': 1024,
  }
  scaled = layers.inverse_frequencies(
    _config(
      head_dim=64, rotary_dim=64, rope_scaling=tuple(sorted(scaling.items()))
    )
  )
  wave = 2 * np.pi / plain
  np.testing.assert_allclose(scaled[wave < 256], plain[wave < 256], rtol=1e-6)
  slow = wave > 1024
  np.testing.assert_allclose(scaled[slow], plain[slow] / 8, rtol=1e-6)
  between = (wave > 256) & (wave < 1024)
  assert between.any()
  assert np.all((scaled < plain)[between] & (scaled > plain / 8)[between])


@pytest.mark.parametrize('interleaved', [False, True])
@pytest.mark.parametrize('rotary_dim', [4, 8])
def test_rotation_keeps_norms_and_sees_distances_only(interleaved, rotary_dim):
  config = _config(rotary_dim=rotary_dim, rope_interleaved=interleaved)
  q, k = jax.random.normal(jax.random.key(0), (2, 1, 2, 8))
  at = lambda x, p: layers.rotate(config, x, jnp.array([p]))
  np.testing.assert_allclose(
    jnp.linalg.norm(at(q, 5), axis=-1), jnp.linalg.norm(q, axis=-1), rtol=1e-5
  )
  np.testing.assert_array_equal(at(q, 5)[..., rotary_dim:], q[..., rotary_dim:])
  np.testing.assert_array_equal(at(q, 0), q)
  near = (at(q, 9) * at(k, 4)).sum(-1)
  far = (at(q, 25) * at(k, 20)).sum(-1)
  np.testing.assert_allclose(near, far, atol=1e-5)


def test_layer_norm_survives_a_large_mean():
  """Mean 1000, deviation 1: one-pass variances lose all their digits."""
  model = transformer.build(hf.config({**_GPT, 'model_type': 'gpt2'}))
  params = model.init(jax.random.key(0))
  x = 1000 + jax.random.normal(jax.random.key(1), (3, 32))
  exact = np.asarray(x, np.float64)
  exact = exact - exact.mean(-1, keepdims=True)
  exact /= np.sqrt((exact**2).mean(-1, keepdims=True) + 1e-5)
  want = exact @ np.asarray(params['embed']['tokens'], np.float64).T
  np.testing.assert_allclose(model.logits(params, x), want, atol=1e-3)
