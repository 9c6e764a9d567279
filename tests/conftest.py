"""Settings of every test: shapes checked, hypothesis derandomised."""

import importlib.util
import os
import pathlib

import hypothesis
import jax
import jaxtyping
import pytest

from tests.field_data import FOLDER

# Before anything of jedit is imported: annotations become checks. Not those of
# types.py, whose fields also hold NumPy arrays, shapes and shardings.
jaxtyping.install_import_hook(
  [
    f'jedit.{name}'
    for name in (
      'condition', 'conflict', 'editors', 'generate', 'gradients',
      'hypernetwork', 'models', 'prompts', 'questions', 'records', 'requests',
      'restore', 'rows', 'sequence', 'spectrum', 'stats', 'suffix', 'tokens',
      'trace', 'updates', 'validate', 'values', 'walk', 'writing',
    )
  ],
  'beartype.beartype',
)  # fmt: skip

# Meshes are of simulated devices. Each waits for the others in a thread of one
# pool, which must hold all that can wait at once.
os.environ.setdefault('NPROC', '32')
jax.config.update('jax_num_cpu_devices', 8)

# Tiny programs compile for seconds and run for milliseconds.
jax.config.update('jax_disable_most_optimizations', True)

hypothesis.settings.register_profile(
  'jedit', derandomize=True, deadline=None, max_examples=25, database=None
)
hypothesis.settings.load_profile('jedit')


@pytest.fixture(scope='module', autouse=True)
def room_for_programs():
  """Compiled programs are mapped into memory, and maps are counted."""
  yield
  maps = pathlib.Path('/proc/self/maps')
  if maps.is_file() and len(maps.read_bytes().splitlines()) > 40_000:
    jax.clear_caches()


@pytest.fixture
def x64():
  """Float64 for one test."""
  with jax.enable_x64(True):
    yield


@pytest.fixture
def optimised():
  """The compiler at its usual effort, for tests on a real model."""
  jax.config.update('jax_disable_most_optimizations', False)
  yield
  jax.config.update('jax_disable_most_optimizations', True)


@pytest.fixture(scope='session')
def data():
  """The data folder: JEDIT_DATA, or shared/data beside the checkout."""
  if not FOLDER.is_dir():
    pytest.skip('no data folder (set JEDIT_DATA)')
  return FOLDER


@pytest.fixture(scope='session')
def home(tmp_path_factory):
  """A folder with a model, its config, facts and a corpus (tests/folder.py)."""
  from tests import folder  # imports jedit, after the hook

  home = tmp_path_factory.mktemp('home')
  jax.config.update('jax_compilation_cache_dir', str(home / 'compiled'))
  jax.config.update('jax_persistent_cache_min_compile_time_secs', 0)
  folder.write(home)
  return home


@pytest.fixture
def make(home, monkeypatch):
  """The config of a method: make(method, field=value, ...)."""
  monkeypatch.setenv('JEDIT_CACHE', str(home / 'cache'))
  monkeypatch.chdir(pathlib.Path(__file__).parents[1])
  spec = importlib.util.spec_from_file_location('tiny_config', home / 'tiny.py')
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)

  def make(of='memit', **fields):
    config = module.get_config(of)
    config.update(fields)
    return config

  return make


@pytest.fixture
def run(make):
  """launch.edit in this process: run(work, of method, field=value, ...)."""
  from launch import edit

  def run(work, of='memit', **fields):
    edit.run(make(of, **fields), str(work))

  return run
