"""Full-size models by eval_shape: published configs, counts and names."""

import importlib
import math
import types

import jax
import ml_collections
import pytest

from configs import base
from jedit.models import hf, transformer
from jedit.models.load import Loaded
from jedit.types import JeditError
from launch import common
from launch import method as launch_method
from tests import tiny

_SUMMARY = {
  'summary_activation': None,
  'summary_first_dropout': 0.1,
  'summary_proj_to_labels': True,
  'summary_type': 'cls_index',
  'summary_use_proj': True,
}
_GPT2_XL = {
  'activation_function': 'gelu_new',
  'architectures': ['GPT2LMHeadModel'],
  'attn_pdrop': 0.1,
  'bos_token_id': 50256,
  'embd_pdrop': 0.1,
  'eos_token_id': 50256,
  'initializer_range': 0.02,
  'layer_norm_epsilon': 1e-05,
  'model_type': 'gpt2',
  'n_ctx': 1024,
  'n_embd': 1600,
  'n_head': 25,
  'n_layer': 48,
  'n_positions': 1024,
  'output_past': True,
  'resid_pdrop': 0.1,
  'task_specific_params': {
    'text-generation': {'do_sample': True, 'max_length': 50}
  },
  'vocab_size': 50257,
  **_SUMMARY,
}
_GPTJ = {
  'activation_function': 'gelu_new',
  'architectures': ['GPTJForCausalLM'],
  'attn_pdrop': 0.0,
  'bos_token_id': 50256,
  'embd_pdrop': 0.0,
  'eos_token_id': 50256,
  'gradient_checkpointing': False,
  'initializer_range': 0.02,
  'layer_norm_epsilon': 1e-05,
  'model_type': 'gptj',
  'n_embd': 4096,
  'n_head': 16,
  'n_inner': None,
  'n_layer': 28,
  'n_positions': 2048,
  'resid_pdrop': 0.0,
  'rotary': True,
  'rotary_dim': 64,
  'scale_attn_weights': True,
  'task_specific_params': {
    'text-generation': {
      'do_sample': True, 'max_length': 50, 'temperature': 1.0
    }
  },
  'tie_word_embeddings': False,
  'tokenizer_class': 'GPT2Tokenizer',
  'transformers_version': '4.18.0.dev0',
  'use_cache': True,
  'vocab_size': 50400,
  **_SUMMARY,
}  # fmt: skip
_LLAMA2 = {
  '_name_or_path': 'meta-llama/Llama-2-7b-hf',
  'architectures': ['LlamaForCausalLM'],
  'bos_token_id': 1,
  'eos_token_id': 2,
  'hidden_act': 'silu',
  'hidden_size': 4096,
  'initializer_range': 0.02,
  'intermediate_size': 11008,
  'max_position_embeddings': 4096,
  'model_type': 'llama',
  'num_attention_heads': 32,
  'num_hidden_layers': 32,
  'num_key_value_heads': 32,
  'pretraining_tp': 1,
  'rms_norm_eps': 1e-05,
  'rope_scaling': None,
  'tie_word_embeddings': False,
  'torch_dtype': 'float16',
  'transformers_version': '4.31.0.dev0',
  'use_cache': True,
  'vocab_size': 32000,
}
_LLAMA3 = {
  'architectures': ['LlamaForCausalLM'],
  'attention_bias': False,
  'attention_dropout': 0.0,
  'bos_token_id': 128000,
  'eos_token_id': 128001,
  'hidden_act': 'silu',
  'hidden_size': 4096,
  'initializer_range': 0.02,
  'intermediate_size': 14336,
  'max_position_embeddings': 8192,
  'model_type': 'llama',
  'num_attention_heads': 32,
  'num_hidden_layers': 32,
  'num_key_value_heads': 8,
  'pretraining_tp': 1,
  'rms_norm_eps': 1e-05,
  'rope_scaling': None,
  'rope_theta': 500000.0,
  'tie_word_embeddings': False,
  'torch_dtype': 'bfloat16',
  'transformers_version': '4.40.0.dev0',
  'use_cache': True,
  'vocab_size': 128256,
}
_LLAMA31 = {
  **_LLAMA3,
  'eos_token_id': [128001, 128008, 128009],
  'max_position_embeddings': 131072,
  'mlp_bias': False,
  'rope_scaling': {
    'factor': 8.0,
    'low_freq_factor': 1.0,
    'high_freq_factor': 4.0,
    'original_max_position_embeddings': 8192,
    'rope_type': 'llama3',
  },
}
_MISTRAL = {
  'architectures': ['MistralForCausalLM'],
  'bos_token_id': 1,
  'eos_token_id': 2,
  'hidden_act': 'silu',
  'hidden_size': 4096,
  'initializer_range': 0.02,
  'intermediate_size': 14336,
  'max_position_embeddings': 32768,
  'model_type': 'mistral',
  'num_attention_heads': 32,
  'num_hidden_layers': 32,
  'num_key_value_heads': 8,
  'rms_norm_eps': 1e-05,
  'rope_theta': 10000.0,
  'sliding_window': 4096,
  'tie_word_embeddings': False,
  'torch_dtype': 'bfloat16',
  'transformers_version': '4.34.0.dev0',
  'use_cache': True,
  'vocab_size': 32000,
}
_QWEN25 = {
  'architectures': ['Qwen2ForCausalLM'],
  'attention_dropout': 0.0,
  'bos_token_id': 151643,
  'eos_token_id': 151643,
  'hidden_act': 'silu',
  'hidden_size': 3584,
  'initializer_range': 0.02,
  'intermediate_size': 18944,
  'max_position_embeddings': 131072,
  'max_window_layers': 28,
  'model_type': 'qwen2',
  'num_attention_heads': 28,
  'num_hidden_layers': 28,
  'num_key_value_heads': 4,
  'rms_norm_eps': 1e-06,
  'rope_theta': 1000000.0,
  'sliding_window': 131072,
  'tie_word_embeddings': False,
  'torch_dtype': 'bfloat16',
  'transformers_version': '4.40.1',
  'use_cache': True,
  'use_mrope': False,
  'use_sliding_window': False,
  'vocab_size': 152064,
}
_QWEN3 = {
  'architectures': ['Qwen3ForCausalLM'],
  'attention_bias': False,
  'attention_dropout': 0.0,
  'bos_token_id': 151643,
  'eos_token_id': 151645,
  'head_dim': 128,
  'hidden_act': 'silu',
  'hidden_size': 4096,
  'initializer_range': 0.02,
  'intermediate_size': 12288,
  'max_position_embeddings': 40960,
  'max_window_layers': 36,
  'model_type': 'qwen3',
  'num_attention_heads': 32,
  'num_hidden_layers': 36,
  'num_key_value_heads': 8,
  'rms_norm_eps': 1e-06,
  'rope_scaling': None,
  'rope_theta': 1000000,
  'sliding_window': None,
  'tie_word_embeddings': False,
  'torch_dtype': 'bfloat16',
  'transformers_version': '4.51.0',
  'use_cache': True,
  'use_sliding_window': False,
  'vocab_size': 151936,
}
_SMOLLM2 = {
  'architectures': ['LlamaForCausalLM'],
  'attention_bias': False,
  'attention_dropout': 0.0,
  'bos_token_id': 1,
  'eos_token_id': 2,
  'hidden_act': 'silu',
  'hidden_size': 576,
  'initializer_range': 0.041666666666666664,
  'intermediate_size': 1536,
  'is_llama_config': True,
  'max_position_embeddings': 8192,
  'mlp_bias': False,
  'model_type': 'llama',
  'num_attention_heads': 9,
  'num_hidden_layers': 30,
  'num_key_value_heads': 3,
  'pad_token_id': 2,
  'pretraining_tp': 1,
  'rms_norm_eps': 1e-05,
  'rope_interleaved': False,
  'rope_scaling': None,
  'rope_theta': 100000,
  'tie_word_embeddings': True,
  'torch_dtype': 'bfloat16',
  'transformers.js_config': {'kv_cache_dtype': {'q4f16': 'float16'}},
  'transformers_version': '4.42.3',
  'use_cache': True,
  'vocab_size': 49152,
}
# config -> (published total, file in configs/ or None, context used).
_MODELS = {
  'gpt2_xl': (_GPT2_XL, 1_557_611_200, 1024),
  'gptj_6b': (_GPTJ, 6_050_882_784, 2048),
  'llama2_7b': (_LLAMA2, 6_738_415_616, 4096),
  'llama3_8b': (_LLAMA3, 8_030_261_248, 8192),
  'qwen25_7b': (_QWEN25, 7_615_616_512, 131072),
  'qwen3_8b': (_QWEN3, 8_190_735_360, 40960),
  'llama31_8b': (_LLAMA31, 8_030_261_248, 131072),
  'mistral_7b': (_MISTRAL, 7_241_732_096, 4096),
  'smollm2_135m': (_SMOLLM2, 134_515_008, 8192),
}
_FILES = [
  *('gpt2_xl', 'gptj_6b', 'llama2_7b', 'llama3_8b', 'qwen25_7b', 'qwen3_8b')
]
_QKV = ['self_attn.q_proj', 'self_attn.k_proj', 'self_attn.v_proj']
_PROJECTIONS = [
  *_QKV,
  'self_attn.o_proj',
  'mlp.gate_proj',
  'mlp.up_proj',
  'mlp.down_proj',
]
_NORMS = ['input_layernorm', 'post_attention_layernorm']
_LLAMA_LAYER = [f'{x}.weight' for x in _PROJECTIONS + _NORMS]
_LAYERS = {
  'llama': _LLAMA_LAYER,
  'mistral': _LLAMA_LAYER,
  'qwen2': _LLAMA_LAYER + [f'{x}.bias' for x in _QKV],
  'qwen3': _LLAMA_LAYER
  + ['self_attn.q_norm.weight', 'self_attn.k_norm.weight'],
  'gpt2': [
    f'{x}.{y}'
    for x in ['ln_1', 'ln_2', 'attn.c_attn', 'attn.c_proj', 'mlp.c_fc']
    + ['mlp.c_proj']
    for y in ('weight', 'bias')
  ],
  'gptj': [
    *('ln_1.weight', 'ln_1.bias', 'mlp.fc_in.weight', 'mlp.fc_in.bias'),
    *('mlp.fc_out.weight', 'mlp.fc_out.bias', 'attn.q_proj.weight'),
    *('attn.k_proj.weight', 'attn.v_proj.weight', 'attn.out_proj.weight'),
  ],
}


@pytest.mark.parametrize('name', _MODELS)
def test_published_config_gives_the_published_size(name):
  config, total, context = _MODELS[name]
  model = transformer.build(hf.config(config))
  assert model.config.context_length == context
  shapes = jax.eval_shape(model.init, jax.random.key(0))
  sizes = [math.prod(x.shape) for x in jax.tree.leaves(shapes)]
  assert sum(sizes) == total
  kind = config['model_type']
  prefix = 'model.layers.5.' if 'hidden_size' in config else 'transformer.h.5.'
  names = [n for n in hf.table(kind, model) if n.startswith(prefix)]
  assert sorted(names) == sorted(prefix + n for n in _LAYERS[kind])


@pytest.mark.parametrize('name', _FILES)
def test_config_file_fits_its_model(name):
  published = _MODELS[name][0]
  module = importlib.import_module(f'configs.{name}')
  for method in (*base.METHODS, 'alphaedit+fuse+clamp_singular', 'rect+blue'):
    config = module.get_config(method)
    assert isinstance(config, ml_collections.ConfigDict)
    launch_method.check(config)
    shape = types.SimpleNamespace(config=hf.config(published))
    common.check_layers(config, types.SimpleNamespace(model=shape))
  assert (
    module.get_config('rome').layers[0] == module.get_config('rome').layers[1]
  )
  lo, hi = module.get_config().layers
  model = transformer.build(hf.config(published))

  def site(key):
    return transformer.split(model.init(key), lo, hi)

  parts = jax.eval_shape(site, jax.random.key(0))
  kernel = parts['site']['mlp']['down']['kernel']
  c = model.config
  assert kernel.shape == (hi - lo + 1, c.mlp_width, c.width)
  above = parts['above']['mlp']['down']['kernel']
  assert above.shape[0] == c.num_layers - hi - 1


def test_methods_are_editors_and_what_is_behind_them():
  assert base.parse('alphaedit') == ('alphaedit', {}, [])
  assert base.parse('memit_history')[:2] == ('memit', {'remember': True})
  want = 'memit', {}, ['keep_largest', 'clamp_singular']
  assert base.parse('rect+clamp_singular') == want
  assert base.parse('rect+blue')[2] == ['keep_largest', 'blue']
  with pytest.raises(ValueError, match="'mimet': choose one of .*alphaedit"):
    base.parse('mimet+fuse')
  with pytest.raises(ValueError, match='behind a . goes one of .*keep_largest'):
    base.parse('memit+alphaedit')
  for wrong, words in {
    'memit+': 'behind a',
    'rect+keep_largest': 'comes twice',
    'rect+fuse': 'fuse comes first',
    'prune+keep_top': 'clamp_singular comes last',
    'memit+blue+fuse': 'behind a',
    'fine_tune+blue': 'closed-form',
  }.items():
    with pytest.raises(ValueError, match=words):
      base.parse(wrong)


def test_numbers_of_a_method_that_is_like_another():
  module = importlib.import_module('configs.gptj_6b')
  plus = module.get_config('alphaedit_plus').editor
  assert (plus.ridge, plus.threshold, plus.gain) == (10.0, 0.017, 1.2e-4)
  assert module.get_config('pmet').editor.weight == 6000
  assert module.get_config('adaedit').editor.weight == 15_000
  assert module.get_config('alphaedit+blue').editor.ridge == 95
  pmet = module.get_config('pmet').optimiser
  assert (pmet.point, pmet.lr, pmet.steps) == ('mlp+attention', 0.2, 30)
  assert pmet.clamp == 0.75  # the model's own
  assert module.get_config('rome').optimiser.clamp == 4.0


def test_an_editor_without_targets_has_no_optimiser():
  module = importlib.import_module('configs.gptj_6b')
  tuned = module.get_config('ft_l+keep_largest')
  assert tuned.optimiser.to_dict() == {} and tuned.layers == (0, 0)
  assert (
    tuned.lookup == 'last' != module.get_config().lookup
  )  # no subject needed
  assert (tuned.editor.loss, tuned.editor.limit) == ('prompt_last', 5e-5)
  assert module.get_config('ft').editor.limit == 0
  assert module.get_config('fine_tune').layers == (21, 21)
  tuned.optimiser = {'lr': 1.0}
  with pytest.raises(JeditError, match='optimiser.lr: ft_l.* takes none'):
    launch_method.check(tuned)


def test_bad_arguments_behind_an_editor_are_refused_at_once():
  module = importlib.import_module('configs.smollm2_135m')
  config = module.get_config('rect')
  config.updates.keep_largest.keep = 0.0
  with pytest.raises(JeditError, match='keep=0.0: a share above 0'):
    launch_method.check(config)


@pytest.mark.parametrize('method', [m for m in base.METHODS if m != 'mend'])
def test_every_editor_can_be_built_before_its_moments_are_known(method):
  module = importlib.import_module('configs.smollm2_135m')
  loaded = Loaded(tiny.model()[0], {}, {}, None)
  config = module.get_config(method)
  launch_method.rehearse(config, loaded)
  if 'ridge' in config.editor and method != 'emmet':  # there 0 is a choice
    config.editor.ridge = 0.0
    with pytest.raises(JeditError, match='ridge=0.0: must be above 0'):
      launch_method.rehearse(config, loaded)
