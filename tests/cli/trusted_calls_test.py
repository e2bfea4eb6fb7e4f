"""What a kept configuration may call of this package, by its source: nothing that writes, runs, sends or imports when it is called.

Followed are functions of the package that are named on the way, by any path; what is defined within one and handed out is not
called yet.
"""

import ast
import functools
import pathlib
from collections.abc import Iterator

import pytest

import nlhf_jax
from nlhf_jax.cli import trust
from nlhf_jax.networks.cpu import native

ROOT = pathlib.Path(nlhf_jax.__file__).parent
# Names of functions and methods, wherever they come from.
FORBIDDEN = frozenset(
  [
    'write_text',
    'write_bytes',
    'mkdir',
    'makedirs',
    'mkdtemp',
    'rename',
    'renames',
    'unlink',
    'rmdir',
    'rmtree',
    'touch',
    'symlink_to',
    'hardlink_to',
    'chmod',
    'chown',
    'copy2',
    'copytree',
    'copyfile',
    'savez',
    'savez_compressed',
    'tofile',
    'fdopen',
    'mkstemp',
    'NamedTemporaryFile',
    'append_rows',
    'popen',
    'Popen',
    'check_call',
    'check_output',
    'execv',
    'execve',
    'fork',
    'eval',
    'exec',
    '__import__',
    'import_module',
    'find_spec',
    'run_path',
    'run_module',
    'urlopen',
    'urlretrieve',
    'socket',
    'create_connection',
    'ask',
    'judge',
    'judge_pairs',
    'snapshot_download',
    'hf_hub_download',
    'environ',
    'getenv',
    'putenv',
  ]
)
# As they are where nothing of that name is imported.
BUILT_IN = frozenset(
  [
    'eval',
    'exec',
    '__import__',
    'GFile',
    'subprocess',
    'urllib',
    'requests',
    'httpx',
    'runpy',
    'ctypes',
    'pickle',
  ]
)
# Words that fields have too.
OF_OS = frozenset(['system', 'truncate', 'remove', 'replace', 'link', 'open'])
_FUNCTIONS = ast.FunctionDef | ast.AsyncFunctionDef
# Who calls them, and why it may. Added to by who has looked.
REVIEWED = {
  # Asks the hub for hf://OWNER/NAME alone: docs/security.md says so.
  'formats.hf_directory._download',
  # Compile and load the C sources of this package, by their names alone, and keep them where compiled programs are kept.
  *(f'networks.cpu.native.{name}' for name in ('target', '_load', '_kept', '_compiler', '_run')),
}


def test_nothing_that_may_be_called_writes_runs_sends_or_imports():
  wrong = {name: found for name in allowed() if (found := dangers(name))}
  assert not wrong


@pytest.mark.parametrize(
  ('name', 'danger'),
  [
    ('runtime.metrics.append_rows', 'open'),
    ('runtime.atomic.write_json', 'mkdir'),
    ('runtime.metrics.files', 'open'),
    ('training.traces.Writer', 'mkdir'),
    ('formats.hf.save', 'write_text'),
    ('data.token_files.write', 'savez_compressed'),
    ('runtime.metrics.check_installed', 'find_spec'),
    ('judges.llm_settings.read_key', 'environ'),
    ('judges.llm_client.Client', 'environ'),
    ('evaluation.collection.collect', 'rmtree'),
    ('training.run.train', 'mkdir'),
  ],
)
def test_what_the_walk_finds(name, danger):
  """Else the test above would show nothing."""
  assert any(found.endswith(f': {danger}') for found in dangers(name))


def test_what_may_be_called_is_there():
  """No entry of the list is a name of the past, and each is of a module, function or class."""
  for entry in trust._DESCRIBING:
    assert any(name == entry or name.startswith(f'{entry}.') for name in map(full, allowed())), (
      entry
    )


def full(name: str) -> str:
  return f'nlhf_jax.{name}'


@functools.cache
def allowed() -> tuple[str, ...]:
  """MODULE.NAME of every public function and class that passes."""
  return tuple(
    f'{module}.{node.name}'
    for path in sorted(ROOT.rglob('*.py'))
    for module in [name_of(path)]
    for node in parsed(module).body
    if isinstance(node, ast.FunctionDef | ast.ClassDef)
    and trust._is_description(full(module), node.name)
  )


def name_of(path: pathlib.Path) -> str:
  return '.'.join(path.relative_to(ROOT).with_suffix('').parts).removesuffix('.__init__')


@functools.cache
def parsed(module: str) -> ast.Module:
  path = ROOT.joinpath(*module.split('.'))
  file = path / '__init__.py' if path.is_dir() else path.with_suffix('.py')
  return ast.parse(file.read_text(encoding='utf-8'))


@functools.cache
def definitions(module: str) -> dict[str, ast.AST]:
  return {x.name: x for x in parsed(module).body if isinstance(x, ast.FunctionDef | ast.ClassDef)}


@functools.cache
def imported(module: str) -> dict[str, str]:
  """Name here → MODULE or MODULE.NAME of this package."""
  result = {}
  for node in ast.walk(parsed(module)):
    if isinstance(node, ast.ImportFrom) and f'{node.module}.'.startswith('nlhf_jax.'):
      of = node.module.removeprefix('nlhf_jax').removeprefix('.')
      result |= {x.asname or x.name: f'{of}.{x.name}'.lstrip('.') for x in node.names}
  return result


@functools.cache
def imported_alone(module: str) -> frozenset[str]:
  """Names that are imported without their module."""
  found = [x for x in ast.walk(parsed(module)) if isinstance(x, ast.ImportFrom)]
  return frozenset(x.asname or x.name for node in found for x in node.names)


def dangers(name: str) -> set[str]:
  """FUNCTION: CALL of all that is reached by calling a function or class."""
  queue, seen, found = [name], {name}, set()
  while queue:
    name = queue.pop()
    module, _, function = name.rpartition('.')
    for node in called(definitions(module)[function]):
      if name not in REVIEWED and (danger := forbidden(module, node)):
        found.add(f'{name}: {danger}')
      reached = in_package(module, node)
      if reached is not None and reached not in seen:
        seen.add(reached)
        queue.append(reached)
  return found


def called(node: ast.AST) -> Iterator[ast.AST]:
  """What is within a function, or a class's making; functions within it only where it calls them itself."""
  if isinstance(node, ast.ClassDef):
    makers = ('__init__', '__new__', '__post_init__', 'setup')
    for inner in node.body:
      if not isinstance(inner, _FUNCTIONS):
        yield from ast.walk(inner)
      elif inner.name in makers:
        yield from called(inner)
    return
  calls = [x.func for x in ast.walk(node) if isinstance(x, ast.Call)]
  names = {x.id for x in calls if isinstance(x, ast.Name)}
  queue = [
    *node.body,
    *node.decorator_list,
    *node.args.defaults,
    *filter(None, node.args.kw_defaults),
  ]
  while queue:
    node = queue.pop()
    if not isinstance(node, _FUNCTIONS) or node.name in names:
      yield node
      queue.extend(ast.iter_child_nodes(node))


def forbidden(module: str, node: ast.AST) -> str | None:
  if isinstance(node, ast.Attribute):
    is_system = isinstance(node.value, ast.Name) and node.value.id == 'os'
    return node.attr if node.attr in FORBIDDEN or (is_system and node.attr in OF_OS) else None
  if isinstance(node, ast.Name):
    named = BUILT_IN | (FORBIDDEN | OF_OS) & imported_alone(module)
    return node.id if node.id in named else None
  if not isinstance(node, ast.Call):
    return None
  name = getattr(node.func, 'attr', getattr(node.func, 'id', ''))
  modes = [*node.args[:2], *(x.value for x in node.keywords if x.arg == 'mode')]
  texts = {x.value for x in modes if isinstance(x, ast.Constant) and isinstance(x.value, str)}
  is_writing = any(set(x) <= set('rwabxt+') and set(x) & set('wax+') for x in texts)
  return 'open' if name == 'open' and is_writing else None


def in_package(module: str, node: ast.AST) -> str | None:
  """The function or class of this package that is named, MODULE.NAME."""
  if isinstance(node, ast.Name):
    if node.id in definitions(module):
      return f'{module}.{node.id}'
    of, _, name = imported(module).get(node.id, '').rpartition('.')
  elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
    of, name = imported(module).get(node.value.id, ''), node.attr
  else:
    return None
  exists = of and (
    ROOT.joinpath(*of.split('.')).with_suffix('.py').is_file()
    or (ROOT.joinpath(*of.split('.')) / '__init__.py').is_file()
  )
  return f'{of}.{name}' if exists and name in definitions(of) else None


def test_what_compiles_may_not_be_named():
  for name in ('target', 'call', 'available', 'unused'):
    assert not trust._is_description('nlhf_jax.networks.cpu.native', name)
  with pytest.raises(ValueError, match="There is few_rows and attend in C, not '/tmp/other'"):
    native.target('/tmp/other')
