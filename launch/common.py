"""What the programs share: config, cache, errors, progress."""

import functools
import hashlib
import inspect
import os
import pathlib
import sys
import traceback

import jax
from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags
from tqdm import tqdm

import jedit
from jedit import values
from jedit.models.load import Loaded
from jedit.types import JeditError

FACTS = pathlib.Path(jedit.__file__).parent / 'data' / 'facts.jsonl'
PROSE = pathlib.Path(jedit.__file__).parent / 'data' / 'prose.txt'
DEFAULT = 'configs/smollm2_135m.py:alphaedit'


def cache_dir() -> pathlib.Path:
  """Where statistics and compiled programs are kept between runs."""
  home = os.environ.get('XDG_CACHE_HOME') or pathlib.Path.home() / '.cache'
  return pathlib.Path(
    os.environ.get('JEDIT_CACHE') or pathlib.Path(home) / 'jedit'
  )


def config_flag():
  """--config=FILE:METHOD and --config.FIELD=VALUE."""
  return config_flags.DEFINE_config_file('config', DEFAULT, 'Config file.')


def run(main) -> None:
  """app.run with the compile cache on and bad input as one clear line."""

  def guarded(argv):
    if len(argv) > 1:
      fail(f'unexpected argument {argv[1]!r}; flags look like --name=value')
    logging.set_verbosity(logging.WARNING)  # orbax tells every step at INFO
    folder = cache_dir() / 'compiled'
    folder.mkdir(parents=True, exist_ok=True)
    jax.config.update('jax_compilation_cache_dir', str(folder))
    jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.2)
    try:
      main(argv)
    except JeditError as e:
      fail(str(e))
    except OSError as e:
      fail(
        f'{e.filename or "disk"}: {e.strerror or e}; free space or mend the '
        'permissions, then run the same command again'
      )

  try:
    app.run(guarded, flags_parser=_parse)
  except (AttributeError, KeyError, TypeError, ValueError, OSError) as e:
    if _parsing(e):
      fail(f'--config: {e}')
    raise


def _parse(args):
  try:
    return flags.FLAGS(args)
  except flags.Error as e:
    fail(str(e))


def _parsing(error: BaseException) -> bool:
  names = [f.name for f in traceback.extract_tb(error.__traceback__)]
  return 'guarded' not in names and '_parse' in names


def fail(message: str):
  """Ends the program: one message, exit code 2."""
  print(f'error: {message}', file=sys.stderr)
  sys.exit(2)


def file_hash(path) -> str:
  """sha256 of a file."""
  with open(path, 'rb') as f:
    return hashlib.file_digest(f, 'sha256').hexdigest()


def build_editor(config: ConfigDict, loaded: Loaded, moment):
  """The editor a config names, its arguments checked."""
  check_method(config)
  optimise = values.optimiser(loaded.model, **config.optimiser)
  method = getattr(jedit, config.method)
  return method(loaded.model, moment, optimise=optimise, **config.editor)


def check_method(config: ConfigDict) -> None:
  """JeditError for an unknown method, or an argument it does not take."""
  known = sorted(
    n
    for n in jedit.__all__
    if inspect.getmodule(getattr(jedit, n)).__name__.startswith(
      'jedit.editors.'
    )
  )
  if config.method not in known:
    raise JeditError(
      f'method {config.method!r}: choose one of {", ".join(known)} '
      '(--config=FILE:METHOD)'
    )
  for field, function in (
    ('editor', getattr(jedit, config.method)),
    ('optimiser', values.optimiser),
  ):
    takes = [
      p.name
      for p in inspect.signature(function).parameters.values()
      if p.kind == p.KEYWORD_ONLY and p.name != 'optimise'
    ]
    wrong = sorted(set(config[field]) - set(takes))
    if wrong:
      raise JeditError(
        f'config.{field}.{wrong[0]}: no such field; {config.method} takes '
        f'{", ".join(takes)}'
      )


def check_layers(config: ConfigDict, loaded: Loaded) -> tuple[int, int]:
  """(lo, hi) of the site."""
  lo, hi = config.layers
  last = loaded.model.config.num_layers - 1
  if not 0 <= lo <= hi < last:
    raise JeditError(
      f'config.layers={tuple(config.layers)}: choose 0 <= first <= last < '
      f'{last} (the value engine needs a layer above the site)'
    )
  return lo, hi


def bar(total: int, name: str, unit: str) -> tqdm:
  """A progress bar that says what, how far, how fast and how long still."""
  return tqdm(
    total=total,
    desc=name,
    unit=unit,
    smoothing=0.1,
    dynamic_ncols=True,
    mininterval=0.5,
  )


def ticker(progress: tqdm):
  """update(done so far) for a bar."""
  return lambda done: progress.update(done - progress.n)


say = functools.partial(print, flush=True)
