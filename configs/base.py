"""What every config shares; a model's file states only its departures."""

import inspect
from collections.abc import Callable, Mapping, Sequence

from ml_collections import ConfigDict

from jedit import editors, updates, values

# Names for an editor with arguments, or with transformations behind it.
_NAMES = {
  'memit_history': ('memit', {'remember': True}),
  'ft': ('fine_tune', {'loss': 'prompt_last'}),
  'ft_l': ('fine_tune', {'loss': 'prompt_last', 'limit': 5e-4}),
  'rect': ('memit+keep_largest', {}),
  'prune': ('memit+clamp_singular', {}),
}
# Where a model's file says nothing of an editor, whose numbers it takes.
_LIKE = {
  'adaedit': 'memit',
  'alphaedit_plus': 'alphaedit',
  'end_to_end': 'memit',
  'null_space': 'alphaedit',
  'pmet': 'memit',
}
_EDITORS = [name for name in editors.__all__ if name != 'blue']
METHODS = (*_EDITORS, *_NAMES)


def parse(method: str) -> tuple[str, dict, list[str]]:
  """(editor, arguments, what is behind) of "EDITOR+TRANSFORMATION+...+blue".

  The first part may be a name of _NAMES; blue is a wrapper of all before it.
  """
  name, *behind = method.split('+')
  whole, arguments = _NAMES.get(name, (name, {}))
  editor, *first = whole.split('+')
  if editor not in _EDITORS:
    raise ValueError(f'method {name!r}: choose one of {", ".join(METHODS)}')
  behind = first + behind
  inside = behind[:-1] if behind and behind[-1] == 'blue' else behind
  for part in inside:
    if part not in updates.__all__:
      known = ', '.join([*updates.__all__, 'blue (last)'])
      raise ValueError(f'method {method!r}: behind a + goes one of {known}')
  if len(set(behind)) < len(behind):
    raise ValueError(f'method {method!r}: a transformation comes twice')
  if 'fuse' in inside[1:] or 'clamp_singular' in inside[:-1]:
    raise ValueError(
      f'method {method!r}: fuse comes first, it needs the rank of a batch; '
      'clamp_singular comes last, it counts what is given out'
    )
  if inside != behind and not (
    needs(editor, 'moment') and needs(editor, 'optimise')
  ):
    raise ValueError(f'method {method!r}: blue needs a closed-form editor')
  return editor, arguments, behind


def defaults(function: Callable) -> dict:
  """The arguments of a function that have a default a flag can set."""
  return {
    p.name: p.default
    for p in inspect.signature(function).parameters.values()
    if p.default is not p.empty and p.name != 'optimise'
  }


def needs(editor: str, argument: str) -> bool:
  """Whether an editor takes second moments, a value engine, a network, ..."""
  return argument in inspect.signature(getattr(editors, editor)).parameters


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
    method: see parse: alphaedit, memit_history, rect, memit+fuse, ...
    model: what jedit.load opens.
    layers: first and last edited layer.
    optimiser: arguments of values.optimiser, for editors that use it.
    methods: arguments of the editors, by the editor's name, the first part of
      the method's or all of it; 'layers', 'batch_size' and 'optimiser' (the
      arguments that differ) where a method departs.
    **departures: other fields below.
  """
  methods = dict(methods or {})
  editor, extra, behind = parse(method)
  names = _LIKE.get(editor, ''), editor, method.split('+')[0], method
  like, own, named, whole = (dict(methods.get(n, {})) for n in names)
  takes = defaults(getattr(editors, editor))
  like = {k: v for k, v in like.items() if k in takes}
  chosen = {**like, **own, **extra, **named, **whole}
  layers = chosen.pop('layers', layers)
  if 'batch_size' in chosen:
    departures = departures | {'batch_size': chosen.pop('batch_size')}
  engine = editors.ENGINES.get(editor, {}) | chosen.pop('optimiser', {})
  optimiser = defaults(values.optimiser) | dict(optimiser or {}) | engine
  if not needs(editor, 'optimise'):
    optimiser = {}
  by_subject = (
    optimiser or editor == 'end_to_end' or chosen.get('tokens') == 'lookup'
  )
  config = ConfigDict(
    {
      # What is edited.
      'model': model,
      'layers': tuple(layers),
      'method': method,
      'editor': {'name': editor} | takes | chosen,
      'updates': {
        n: defaults(getattr(updates, n)) for n in behind if n != 'blue'
      },
      'optimiser': optimiser,
      # Which facts, and how they are put to the model.
      'requests': '',  # a file; '' is the set that jedit ships
      'num_edits': 0,  # 0: all; of the set that jedit ships, 40
      'batch_size': 100,
      'target': '',  # the field that is written; zsRE: '' (answers) or alt
      'order': 'given',  # given, shuffled
      'rendering': 'raw',  # raw, qa, chat
      # subject, last: whose last token is edited; of gradient editors it is
      # where those with tokens='lookup' learn, and nothing to the others.
      'lookup': 'subject' if by_subject else 'last',
      'on_bad_request': 'error',  # error, skip
      'on_collision': 'error',  # error, last, merge
      'seed': 0,  # contexts, order, self-written text
      # Second moments: a text file, published .npz files ({} is the layer), or
      # '' for text that the model writes itself.
      'corpus': '',
      'corpus_tokens': 100_000,  # 0: all
      'corpus_window': 256,
      'self_text_start': '',  # '' is the BOS or EOS token
      # alphaedit_plus: contexts (one that no value is optimised on) or
      # test_prompts (the released code's leak of the evaluation's paraphrases).
      'validation': 'contexts',
      # mend: the folder that launch.train_mend wrote.
      'network': '',
      # The run.
      'checkpoint_every': 1,  # batches
      'eval_records': 0,  # measured, spread over the stream; 0: all
      'curve_at': (),  # numbers of edits after which the model is scored, too
      'curve_records': 200,  # most records of each schedule that this asks for
      'max_perplexity': 10.0,  # times the base model's; the run stops above
      'max_norm': 3.0,  # times the base norm of any edited matrix
      'memory': 0.0,  # bytes the preflight may plan with; 0: what there is
      # Devices: facts are split over data_parallel of them (0: all there are),
      # matrices over model_parallel; with fsdp, over both.
      'data_parallel': 0,
      'model_parallel': 1,
      'fsdp': False,
      # Records with free answers to their questions and openings, too.
      'spoken': 0,
      # Texts about the new facts, for the consistency of what follows openings:
      # MEMIT's data folder, or a file like its attribute_snippets.json.
      'references': '',
      # launch.evaluate, launch.trace: the params to look at ('' is `model`).
      'params': '',
    }
  )
  unknown = set(departures) - set(config)
  if unknown:
    raise ValueError(f'config has no field {sorted(unknown)}')
  config.update(departures)
  return config
