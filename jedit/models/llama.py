"""Llama 2 and 3, SmolLM2, Mistral, Qwen2, Qwen2.5, Qwen3 (dense)."""

import flax.linen as nn

from jedit.models.layers import Attention, Config, Mlp


class Block(nn.Module):
  """Pre-norm block: attention, then a gated MLP."""

  config: Config

  def setup(self):
    """Names the parts as the params do."""
    self.attn_norm = nn.RMSNorm(epsilon=self.config.norm_eps)
    self.attn = Attention(self.config)
    self.mlp_norm = nn.RMSNorm(epsilon=self.config.norm_eps)
    self.mlp = Mlp(self.config, gated=True)

  def address(self, x, positions, attend):
    """Returns (mid [.., D], key [.., F], (k, v)): all but the memory."""
    out, kv = self.attn(self.attn_norm(x), positions, attend)
    mid = x + out
    return mid, self.key(x, mid), kv

  def key(self, x, mid):
    """The key [.., F] of a block that reads x and holds mid after attention."""
    del x
    return self.mlp.key(self.mlp_norm(mid))

  def value(self, mid, key):
    """What the memory adds: mid + key @ W_down."""
    return mid + self.mlp.down(key)

  def __call__(self, x, positions, attend):
    """The whole block: x [.., D] -> [.., D]."""
    mid, key, _ = self.address(x, positions, attend)
    return self.value(mid, key)


final_norm = nn.RMSNorm

# Published tensor name -> (path in params, transpose?), both ways. `{}` is the
# layer, axis 0 of a stacked leaf. Entries whose path a config lacks are unused.
_L = 'model.layers.{}.'
_LINEAR = {
  'self_attn.q_proj': 'attn/q',
  'self_attn.k_proj': 'attn/k',
  'self_attn.v_proj': 'attn/v',
  'self_attn.o_proj': 'attn/out',
  'mlp.gate_proj': 'mlp/gate',
  'mlp.up_proj': 'mlp/up',
  'mlp.down_proj': 'mlp/down',
}
_NORM = {
  'input_layernorm': 'attn_norm',
  'post_attention_layernorm': 'mlp_norm',
  'self_attn.q_norm': 'attn/q_norm',
  'self_attn.k_norm': 'attn/k_norm',
}
_LEAVES = [
  *((a, b, 'weight', 'scale', False) for a, b in _NORM.items()),
  *((a, b, 'weight', 'kernel', True) for a, b in _LINEAR.items()),
  *((a, b, 'bias', 'bias', False) for a, b in _LINEAR.items()),
]
TABLE = {
  'model.embed_tokens.weight': ('embed/tokens', False),
  'model.norm.weight': ('final_norm/scale', False),
  'lm_head.weight': ('head/kernel', True),
  **{f'{_L}{a}.{m}': (f'layers/{b}/{n}', t) for a, b, m, n, t in _LEAVES},
}


def config_from_hf(c: dict) -> Config:
  """Config of a Hugging Face config.json (defaults filled in) as a dict."""
  kind = c['model_type']
  heads = c['num_attention_heads']
  head_dim = c.get('head_dim') or c['hidden_size'] // heads
  rope = dict(c.get('rope_parameters') or c.get('rope_scaling') or {})
  theta = rope.pop('rope_theta', None) or c.get('rope_theta') or 10_000.0
  rope.setdefault('rope_type', rope.pop('type', 'default'))
  if rope['rope_type'] == 'default':
    rope = {}
  context = c['max_position_embeddings']
  if c.get('sliding_window'):  # exact while no text is longer
    context = min(context, c['sliding_window'])
  bias = kind in ('llama', 'qwen3') and bool(c.get('attention_bias'))
  return Config(
    family='llama',
    vocab_size=c['vocab_size'],
    width=c['hidden_size'],
    mlp_width=c['intermediate_size'],
    num_layers=c['num_hidden_layers'],
    num_heads=heads,
    num_kv_heads=c.get('num_key_value_heads') or heads,
    head_dim=head_dim,
    context_length=context,
    norm_eps=c['rms_norm_eps'],
    tied=bool(c.get('tie_word_embeddings')),
    rotary_dim=head_dim,
    rope_theta=float(theta),
    rope_scaling=tuple(sorted(rope.items())),
    qkv_bias=bias or kind == 'qwen2',
    out_bias=bias,
    mlp_bias=kind == 'llama' and bool(c.get('mlp_bias')),
    qk_norm=kind == 'qwen3',
  )
