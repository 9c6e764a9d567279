"""What every config shares; a model's file states only its departures."""

from collections.abc import Mapping, Sequence

from ml_collections import ConfigDict

# A name that is no editor by itself: (editor, arguments).
_VARIANTS = {'memit_history': ('memit', {'remember': True})}


def get_config(
  method: str,
  *,
  model: str,
  layers: Sequence[int],
  optimiser: Mapping | None = None,
  methods: Mapping[str, Mapping] | None = None,
  **departures,
) -> ConfigDict:
  """Config of a method for a model.

  Args:
    method: an editor of jedit, or memit_history.
    model: what jedit.load opens.
    layers: first and last edited layer.
    optimiser: arguments of values.optimiser.
    methods: arguments of the editors, by name.
    **departures: other fields below.
  """
  methods = dict(methods or {})
  editor, extra = _VARIANTS.get(method, (method, {}))
  config = ConfigDict(
    {
      # What is edited.
      'model': model,
      'layers': tuple(layers),
      'method': editor,
      'editor': {**methods.get(editor, {}), **methods.get(method, {}), **extra},
      'optimiser': dict(optimiser or {}),
      # Which facts, and how they are put to the model.
      'requests': '',  # a file; '' is the set that jedit ships
      'num_edits': 0,  # 0: all
      'batch_size': 100,
      'order': 'given',  # given, shuffled
      'rendering': 'raw',  # raw, qa, chat
      'on_bad_request': 'error',  # error, skip
      'on_collision': 'error',  # error, last, merge
      'seed': 0,  # contexts, order, self-written text
      # Second moments: a text file, published .npz files ({} is the layer), or
      # '' for text that the model writes itself.
      'corpus': '',
      'corpus_tokens': 100_000,  # 0: all
      'corpus_window': 256,
      'self_text_start': '',  # '' is the BOS or EOS token
      # The run.
      'checkpoint_every': 1,  # batches
      'curve_every': 0,  # batches between two scores on the way; 0: none
      'max_perplexity': 10.0,  # times the base model's; the run stops above
      'max_norm': 3.0,  # times the base norm of any edited matrix
      'memory': 0.0,  # bytes the preflight may plan with; 0: what there is
      # launch.evaluate, launch.generate: the params to look at ('' is `model`).
      'params': '',
    }
  )
  config.editor = ConfigDict(config.editor, convert_dict=False)
  unknown = set(departures) - set(config)
  if unknown:
    raise ValueError(f'config has no field {sorted(unknown)}')
  config.update(departures)
  return config
