"""Who may import whom, read off the source."""

import ast
import pathlib

import pytest

_ROOT = pathlib.Path(__file__).parents[1]
# Lower never imports higher, nor its like; checkpoint counts as part of models.
_RANK = {
  'types': 0, 'files': 0.5, 'probes': 0.4, 'records': 0.5, 'tokens': 0.5,
  'published': 0.7, 'editions': 0, 'room': 0.7,
  'requests': 1, 'metrics': 1, 'answers': 1, 'references': 1,
  'updates': 1, 'spectrum': 1,
  'condition': 2, 'conflict': 2, 'models': 2, 'prompts': 2,
  'sharding': 0.7, 'parts': 0.8,
  'questions': 2.1, 'rows': 2.5, 'suffix': 2.7, 'validate': 2.7, 'walk': 2.8,
  'values': 3, 'gradients': 3, 'stats': 3, 'generate': 3, 'restore': 3,
  'writing': 3.1,
  'hypernetwork': 3.5, 'trace': 3.5,
  'editors': 4, 'sequence': 5, 'foresight': 5, 'evaluate': 6, 'speech': 6.2,
  'ability': 6.5, 'harness': 6.5, 'inside': 5, 'launch': 7,
}  # fmt: skip
_GROUP = {'checkpoint': 'models'}
_FORBIDDEN = 'absl', 'ml_collections', 'tqdm', 'launch', 'configs', 'tests'


def modules(folder):
  """{dotted name: path} of the modules below a folder of the checkout."""
  out = {}
  for path in sorted((_ROOT / folder).rglob('*.py')):
    name = '.'.join(path.relative_to(_ROOT).with_suffix('').parts)
    out[name.removesuffix('.__init__')] = path
  return out


_JEDIT = modules('jedit')
_ALL = _JEDIT | modules('launch')


def imports(path):
  """Dotted names a file imports, wherever it does."""
  out = set()
  for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
    if isinstance(node, ast.Import):
      out |= {alias.name for alias in node.names}
    elif isinstance(node, ast.ImportFrom):
      assert not node.level, f'{path}: relative import'
      for alias in node.names:
        name = f'{node.module}.{alias.name}'
        out.add(name if name in _ALL else node.module)
  return out


def group(module):
  """'jedit.models.hf' -> 'models'; 'launch.edit' -> 'launch'."""
  parts = module.split('.')
  name = 'launch' if parts[0] == 'launch' else parts[1]
  return _GROUP.get(name, name)


def test_the_modules_are_found():
  assert {'jedit.types', 'jedit.editors.memit', 'jedit.models.hf'} <= set(
    _JEDIT
  )
  found = imports(_JEDIT['jedit.editors.memit'])
  assert {
    'jedit.condition',
    'jedit.types',
  } <= found  # `from jedit import x` too


@pytest.mark.parametrize('module', sorted(set(_ALL) - {'jedit', 'launch'}))
def test_direction(module):
  own = group(module)
  for other in imports(_ALL[module]) & set(_ALL):
    if other == 'jedit':
      assert own == 'launch', f'{module} imports the whole of jedit'
    elif group(other) != own:
      assert _RANK[group(other)] < _RANK[own], f'{module} imports {other}'


def test_no_cycles():
  graph = {m: imports(path) & set(_ALL) for m, path in _ALL.items()}
  graph.pop('jedit')
  while graph:
    free = {m for m, needs in graph.items() if not needs & set(graph)}
    assert free, f'modules import each other: {sorted(graph)}'
    graph = {m: needs for m, needs in graph.items() if m not in free}


@pytest.mark.parametrize('module', sorted(_JEDIT))
def test_the_library_knows_no_launcher(module):
  roots = {name.split('.')[0] for name in imports(_JEDIT[module])}
  assert not roots & set(_FORBIDDEN)


@pytest.mark.parametrize('module', sorted(_JEDIT))
def test_flax_stays_in_models(module):
  if group(f'{module}.') != 'models':
    assert 'flax' not in {n.split('.')[0] for n in imports(_JEDIT[module])}
