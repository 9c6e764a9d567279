"""Second moments for a run: from the cache, or made and put there."""

import json
import time

import jax
from ml_collections import ConfigDict

import jedit
from jedit import checkpoint, sharding, spectrum, stats, writing
from jedit.models.load import Loaded
from jedit.room import round_up
from jedit.tokens import start_ids
from jedit.types import JeditError, Params, SecondMoment, Spectrum
from launch import common, devices, earlier


def identity(config: ConfigDict, loaded: Loaded, base_hash: str) -> str:
  """All that second moments depend on, as one line."""
  corpus = config.corpus and common.file_hash(config.corpus)
  own = {'seed': config.seed, 'start': config.self_text_start}
  return json.dumps(
    {
      'weights': base_hash,
      'model': repr(loaded.model.config),
      'tokenizer': _tokenizer_hash(loaded.tokenizer),
      'corpus': corpus or own,
      'window': config.corpus_window,
      'tokens': config.corpus_tokens,
      'layers': list(config.layers),
      'dtype': 'float32',
    },
    sort_keys=True,
  )


def _tokenizer_hash(tokenizer) -> str:
  about = sorted(tokenizer.get_vocab().items()), start_ids(tokenizer)
  return checkpoint.digest(json.dumps(about).encode())


def get(
  config: ConfigDict, loaded: Loaded, params: Params, base_hash: str
) -> tuple[SecondMoment, float]:
  """(moments of the site layers, decomposed; seconds it took to make them).

  Args:
    config: of the run.
    loaded: its model and tokenizer.
    params: unsplit, on the devices in use.
    base_hash: of params.
  """
  origin = earlier.folder_of(config.model)
  if origin:
    raise JeditError(
      f'config.model={origin} is a run: launch.edit goes on from the state in '
      'it, without second moments; name the model that it edited'
    )
  start = time.perf_counter()
  moment, known = _moment(config, loaded, params, base_hash)
  spectra = _spectra(moment)
  if spectra is None:
    known, spectra = False, _decomposed(moment)
  moment = moment._replace(spectrum=spectra)
  return moment, 0.0 if known else time.perf_counter() - start


def _path(layer):
  name = checkpoint.fingerprint({'moment': layer})
  return common.cache_dir() / 'spectrum' / f'{name}.npy'


def _spectra(moment: SecondMoment) -> tuple[Spectrum, ...] | None:
  """What is kept of all layers."""
  found = tuple(spectrum.load(_path(x), x) for x in moment.moment)
  return found if devices.agreed(None not in found) else None


def _decomposed(moment: SecondMoment) -> tuple[Spectrum, ...]:
  """The spectra, made and kept: each process makes its share of layers."""
  common.say('eigenvectors of the second moments')
  for e in range(jax.process_index(), len(moment.moment), jax.process_count()):
    one = SecondMoment(moment.moment[e : e + 1], moment.count)
    (made,) = spectrum.of(one)
    spectrum.save(_path(moment.moment[e]), made)
  devices.wait('spectrum')
  found = _spectra(moment)
  if found is None:
    raise JeditError(
      f'{common.cache_dir()}: what was written there is not found; run again, '
      'with a cache (JEDIT_CACHE) that all processes share'
    )
  return found


def _moment(config, loaded, params, base_hash) -> tuple[SecondMoment, bool]:
  """(moments, whether they were there)."""
  lo, hi = config.layers
  if '{}' in config.corpus:
    width = loaded.model.config.mlp_width
    return stats.published(config.corpus, range(lo, hi + 1), width), True
  key = identity(config, loaded, base_hash)
  path = (
    common.cache_dir() / 'moments' / f'{checkpoint.digest(key.encode())}.npz'
  )
  if devices.agreed(path.is_file()):
    common.say(f'second moments: {path}')
    return stats.load(path, key), True
  begin, room = start_ids(loaded.tokenizer), loaded.model.config.context_length
  if not len(begin) < config.corpus_window <= room:
    raise JeditError(
      f'corpus_window={config.corpus_window}: from {len(begin) + 1} to {room}, '
      'what the model takes'
    )
  if config.corpus:
    texts = stats.read_corpus(config.corpus)
    documents = stats.encoded(loaded.tokenizer, texts)
  else:
    tokens = config.corpus_tokens or 100_000
    with common.bar(tokens, 'writing text', 'token') as b:
      documents = writing.documents(
        loaded.model,
        params,
        loaded.tokenizer,
        tokens,
        config.corpus_window - len(begin),
        config.seed,
        config.self_text_start,
        common.ticker(b),
      )
  rows = round_up(4096 // config.corpus_window, sharding.parts())
  batches = stats.windows(
    documents, begin, config.corpus_window, rows, config.corpus_tokens
  )
  # Nothing above the site runs.
  params = params | {
    'layers': jax.tree.map(lambda x: x[: hi + 1], params['layers'])
  }
  partial = path.with_suffix('.partial.npz')
  with common.bar(config.corpus_tokens or None, 'second moments', 'token') as b:
    moment = stats.collect(
      loaded.model,
      jedit.split(params, lo, hi),
      batches,
      partial,
      common.ticker(b),
    )
  moment = sharding.fetch(moment)
  stats.save(path, moment, key)
  if sharding.writes():
    partial.unlink(missing_ok=True)
  return moment, False
