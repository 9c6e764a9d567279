"""What the programs share: config, cache, errors, progress."""

import contextlib
import functools
import glob
import hashlib
import os
import pathlib
import runpy
import shlex
import sys

import jax
import numpy as np
from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags
from tqdm import tqdm

import jedit
from jedit import (
  editions,
  evaluate,
  files,
  prompts,
  requests,
  sharding,
  speech,
  writing,
)
from jedit.models.load import Loaded
from jedit.records import Request
from jedit.types import JeditError
from launch import devices, profile

FACTS = pathlib.Path(jedit.__file__).parent / 'data' / 'facts.jsonl'
PROSE = pathlib.Path(jedit.__file__).parent / 'data' / 'prose.txt'
DEFAULT = 'configs/smollm2_135m.py:alphaedit'


def cache_dir() -> pathlib.Path:
  """Where statistics and compiled programs are kept between runs."""
  home = os.environ.get('XDG_CACHE_HOME') or pathlib.Path.home() / '.cache'
  return pathlib.Path(
    os.environ.get('JEDIT_CACHE') or pathlib.Path(home) / 'jedit'
  )


@functools.cache
def config_flag():
  """--config=FILE:METHOD and --config.FIELD=VALUE."""
  with _flag_errors():  # the default config's fields are looked up here
    return config_flags.DEFINE_config_file('config', DEFAULT, 'Config file.')


@functools.cache
def workdir_flag():
  """--workdir=FOLDER; '' makes a new one."""
  return flags.DEFINE_string('workdir', '', 'Folder; "" makes a new one.')


def remade(method: str) -> ConfigDict:
  """What --config and its fields say, of another method."""
  flag = flags.FLAGS['config']
  path = config_flags.get_config_filename(flag).partition(':')[0]
  try:
    config = runpy.run_path(path)['get_config'](method)
    config.update_from_flattened_dict(config_flags.get_override_values(flag))
  except (KeyError, TypeError, ValueError) as e:
    raise JeditError(f'method {method}: {e}') from e
  return config


def run(main) -> None:
  """app.run with the compile cache on and bad input as one clear line."""

  def guarded(argv):
    if len(argv) > 1:
      fail(f'unexpected argument {argv[1]!r}; flags look like --name=value')
    logging.set_verbosity(logging.FATAL)  # orbax logs what it raises, too
    sys.stdout.reconfigure(errors='backslashreplace')  # a screen without UTF-8
    folder = cache_dir() / 'compiled'
    jax.config.update('jax_compilation_cache_dir', str(folder))
    jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.2)
    try:
      folder.mkdir(parents=True, exist_ok=True)
      devices.connect()
      with devices.together(), profile.watched():
        main(argv)
    except JeditError as e:
      fail(str(e))
    except OSError as e:
      if e.errno is None:  # a config file that is not there
        fail(' '.join(str(e).split()[-12:]))
      where = str(e.filename or 'disk')  # it may be a number
      ours = pathlib.Path(where).is_relative_to(cache_dir())
      fail(
        f'{where}: {e.strerror or e}; free space or mend the permissions'
        f'{", or let JEDIT_CACHE name another folder" * ours}, then run the '
        'same command again'
      )

  app.run(guarded, flags_parser=_parse)


def _parse(args):
  with _flag_errors():
    return flags.FLAGS(args)


@contextlib.contextmanager
def _flag_errors():
  """What is wrong with a flag is a line, not a traceback."""
  try:
    yield
  except (AttributeError, KeyError) as e:
    name = str(e.args[0]).strip('"\'')
    fail(f"--config has no field '{name}'; configs/base.py lists them")
  except (flags.Error, ValueError, TypeError, OSError) as e:
    lines = [line.strip() for line in str(e).splitlines() if line.strip()]
    first = [] if len(lines) < 2 else [lines[0].split(': Error')[0]]
    fail(': '.join([*first, lines[-1]]))


def fail(message: str):
  """Ends the program: one message, exit code 2."""
  print(f'error: {message}', file=sys.stderr)
  sys.exit(2)


def file_hash(path) -> str:
  """sha256 of a file; of all in a folder, or of all that {} stands for."""
  home, _, after = os.fspath(path).partition('{}')
  if after or home != os.fspath(path):
    found = sorted(glob.glob(f'{glob.escape(home)}*{glob.escape(after)}'))
  elif os.path.isdir(path):
    found = sorted(p for p in pathlib.Path(path).rglob('*') if p.is_file())
  else:
    found = [files.local(path)]
  whole = hashlib.sha256()
  for one in found:
    with open(one, 'rb') as f:
      part = hashlib.file_digest(f, 'sha256')
    whole.update(part.digest())
  return part.hexdigest() if len(found) == 1 else whole.hexdigest()


def command() -> str:
  """The command that this program was started by."""
  spec = sys.modules['__main__'].__spec__
  program = ['python', '-m', spec.name] if spec else sys.argv[:1]
  return shlex.join([*program, *sys.argv[1:]])


_FEW = 40  # of the set that jedit ships, if no number is asked for


@functools.cache  # a sweep reads one file for each of its runs
def _say_edition(path: str) -> None:
  about = editions.describe(path.rpartition('/')[2], file_hash(path))
  if about:
    say(about)


def read_requests(config: ConfigDict, path, loaded: Loaded):
  """(requests that a run edits, in its order; why others were left out)."""
  asked, skipped = usable_requests(config, path, loaded)
  count = config.num_edits or (_FEW if path == FACTS else 0)
  return requests.select(asked, count, config.order, config.seed), skipped


def usable_requests(config: ConfigDict, path, loaded: Loaded):
  """(all requests of a file; why others were left out)."""
  asked, skipped = requests.read(path, config.on_bad_request, config.target)
  _say_edition(os.fspath(path))
  if config.on_bad_request == 'skip':
    room = loaded.model.config.context_length - writing.CONTEXT_TOKENS
    fit, more = prompts.usable(
      loaded.tokenizer, asked, config.rendering, room, config.lookup
    )
    fit, long = _measurable(config, loaded, fit)
    asked, parts = requests.complete(fit, asked)
    skipped += more + long + parts
  return asked, skipped


def _measurable(config: ConfigDict, loaded: Loaded, asked: list[Request]):
  """(the requests whose questions fit the model; why others were left out)."""
  if not asked:
    return asked, []
  free, room = bool(config.spoken), loaded.model.config.context_length
  openings = range(len(asked)) if free else ()
  probe = evaluate.probe(loaded.tokenizer, asked, config.rendering, openings)
  most = np.zeros(len(asked), int)
  np.maximum.at(most, probe.record, speech.tokens(probe, free))
  pairs = list(zip(asked, most.tolist(), strict=True))
  long = [too_long(r, n, room) for r, n in pairs if n > room]
  return [r for r, n in pairs if n <= room], long


def too_long(request: Request, tokens: int, room: int) -> str:
  """Why a request cannot be evaluated."""
  return (
    f'record {request.id}: a question and its answer have {tokens} tokens, the '
    f'model takes {room}: shorten or remove it'
  )


def check_layers(config: ConfigDict, loaded: Loaded) -> tuple[int, int]:
  """(lo, hi) of the site."""
  if len(config.layers) != 2:
    raise JeditError(
      f'config.layers={tuple(config.layers)}: the first and the last layer, '
      'like (4, 8); one layer is (5, 5)'
    )
  lo, hi = config.layers
  last = loaded.model.config.num_layers - 1
  if config.optimiser:
    last -= 1  # the value engine needs a layer above the site
  if not 0 <= lo <= hi <= last:
    raise JeditError(
      f'config.layers={tuple(config.layers)}: choose 0 <= first <= last <= '
      f'{last}, counted from 0'
    )
  return lo, hi


def bar(total: int, name: str, unit: str) -> tqdm:
  """A progress bar that says what, how far, how fast and how long still."""
  return tqdm(
    total=total,
    desc=name,
    disable=not sharding.writes(),
    unit=unit,
    smoothing=0.1,
    dynamic_ncols=True,
    mininterval=0.5,
  )


def ticker(progress: tqdm):
  """update(done so far) for a bar."""
  return lambda done: progress.update(done - progress.n)


def say(text: str) -> None:
  """A line on screen, by the first process."""
  if sharding.writes():
    print(text, flush=True)
