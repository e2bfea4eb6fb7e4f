"""README and docs/: their Python runs, their commands parse, what they name is there.

A block that needs data or an accelerator is parsed and not run. Placeholders in commands are in capitals: DIR, FILE, RUN.
"""

import ast
import functools
import pathlib
import re
import shlex
import subprocess
import sys
from typing import NamedTuple

import pytest

from nlhf_jax.cli import experiments, flags

ROOT = pathlib.Path(__file__).resolve().parent.parent
PAGES = [
  ROOT / 'README.md',
  *(page for page in sorted((ROOT / 'docs').glob('*.md')) if page.name != 'LOG.md'),
]
# What a reader fills in.
PLACEHOLDER = re.compile(r'[A-Z]+(_[A-Z]+)*|runs/\S*|models/\S*')


# Names in capitals that are no macros.
READERS_OWN = {'COMMAND', 'FILE', 'JAX_COMPILATION_CACHE_DIR', 'RUN_DIR'}


class Block(NamedTuple):
  """A fenced block."""

  page: pathlib.Path
  line: int
  language: str
  text: str

  def __str__(self):
    return f'{self.page.relative_to(ROOT)}:{self.line}'


def blocks(page: pathlib.Path) -> list[Block]:
  text = page.read_text(encoding='utf-8')
  return [
    Block(page, text.count('\n', 0, match.start()) + 1, match[1], match[2])
    for match in re.finditer(r'^```(\w*)\n(.*?)^```$', text, re.DOTALL | re.MULTILINE)
  ]


def blocks_in(page: pathlib.Path, language: str) -> list[Block]:
  return [block for block in blocks(page) if block.language == language]


def spans(page: pathlib.Path) -> list[str]:
  """Code within a line of text."""
  text = re.sub(r'^```.*?^```$', '', page.read_text(encoding='utf-8'), flags=re.DOTALL | re.M)
  return [' '.join(span.split()) for span in re.findall(r'`([^`]+)`', text)]


PYTHON = [block for page in PAGES[1:] for block in blocks_in(page, 'python')]


def command_lines(block: Block) -> list[str]:
  lines = block.text.replace('\\\n', ' ').splitlines()
  return [line for line in (re.sub(r'(^|\s)#.*', '', line).strip() for line in lines) if line]


COMMANDS = [
  *((str(b), line) for page in PAGES for b in blocks_in(page, 'bash') for line in command_lines(b)),
  *(
    (str(page.relative_to(ROOT)), span)
    for page in PAGES
    for span in spans(page)
    if re.match(r'(nlhf|python|pytest|make|launch/\S+) [^A-Z]', span) and '…' not in span
  ),
]


@pytest.mark.parametrize('block', PYTHON, ids=str)
def test_python_block_runs(block, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  exec(compile(block.text, str(block), 'exec'), {'__name__': '__main__'})


def test_readme_example_runs_without_tensorflow_and_gin(tmp_path):
  (example,) = blocks_in(ROOT / 'README.md', 'python')
  statements = [x for x in example.text.splitlines() if x and not re.match('import|from', x)]
  assert len(statements) <= 8
  done = subprocess.run(
    [sys.executable, '-c', f'{example.text}\nimport sys; print(*sys.modules)'],
    check=True,
    capture_output=True,
    text=True,
    cwd=tmp_path,
  )
  assert not {'tensorflow', 'gin', 'seqio'} & set(done.stdout.split())


@pytest.mark.parametrize(('where', 'line'), COMMANDS, ids=lambda x: x[:60])
def test_command_parses(where, line):
  del where
  words = shlex.split(line)
  while words and re.match(r'[A-Z_]+=', words[0]):  # Its environment.
    words.pop(0)
  check = {'nlhf': check_nlhf, 'python': check_python, 'pytest': check_pytest, 'make': check_make}
  program = pathlib.Path(words[0]).name
  if program in check:
    check[program](words[1:])
  elif words[0].startswith('launch/'):
    check_launcher(words)
  else:
    assert program in ('pip', 'sbatch', 'source'), f'Nobody checks {program}.'
    for word in words:
      assert not word.startswith('launch/') or (ROOT / word).is_file()


def check_nlhf(argv: list[str]) -> None:
  """Flags are known, files and experiments are there, macros are set by some of them."""
  if len(argv) == 1:  # The text names a command.
    with pytest.raises(SystemExit, match='0'):
      flags.parse([*argv, '--help'])
    return
  args = flags.parse(argv)
  files = [file for file in getattr(args, 'gin_file', []) if not PLACEHOLDER.fullmatch(file)]
  for file in files:
    assert (ROOT / file).is_file(), file
  if experiment := getattr(args, 'experiment', None):
    found = find_experiment(experiment)
    files += [str(path) for stage in found for path in stage.files]
  if files:
    check_bindings(args.bindings, files)


def find_experiment(name: str) -> list[experiments.Stage]:
  """All runs of EXPERIMENT, or the one of EXPERIMENT/RUN."""
  try:
    return experiments.stages(experiments.locate(name))
  except FileNotFoundError:
    return [experiments.stage(name)]


def check_bindings(bindings: list[str], files: list[str]) -> None:
  """Macros are set by one of the files, parameters are those of a function or class."""
  texts = '\n'.join(included(file) for file in files)
  for binding in bindings:
    name = binding.partition('=')[0]
    known = is_defined(*name.split('.')) if '.' in name else re.search(rf'^{name} *=', texts, re.M)
    assert known, f'{name} is in none of {files}.'


@functools.cache
def included(file: str) -> str:
  """A gin file's text, and that of the files of ours that it includes."""
  text = (ROOT / file).read_text(encoding='utf-8')
  return '\n'.join(
    [text, *map(included, re.findall(r"^include '(configs/.+)'", text, re.MULTILINE))]
  )


def check_python(argv: list[str]) -> None:
  """The script is there and knows the flags."""
  if argv[0] == '-m':
    assert argv[1] == 't5x.train'
    for word in argv:
      name, _, value = word.partition('=')
      assert name != '--gin_file' or (ROOT / value).is_file()
    words = [word.removeprefix('--gin.') for word in argv if word.startswith('--gin.')]
    bindings = [word for word in words if not word.startswith('MODEL_DIR=')]  # T5X's own.
    return check_bindings(bindings, [w[11:] for w in argv if w.startswith('--gin_file=')])
  source = (ROOT / argv[0]).read_text(encoding='utf-8')
  if 'training_speed.arguments(' in source:  # Which others share.
    source += (ROOT / 'benchmarks' / 'training_speed.py').read_text(encoding='utf-8')
  for word in argv[1:]:
    if word.startswith('--') and word != '--':
      assert f"'{word.partition('=')[0]}'" in source, f'{argv[0]} has no {word}.'
  given = {word.partition('=')[0] for word in argv}
  for flag, rest in re.findall(r"add_argument\(\s*'(--\w+)'([^()]*)\)", source):
    assert 'required=True' not in rest or flag in given, f'{argv[0]} needs {flag}.'


def check_pytest(argv: list[str]) -> None:
  for word in argv:
    assert word.startswith('-') or (ROOT / word).is_file(), word


def check_make(argv: list[str]) -> None:
  targets = re.findall(r'^([a-z]+):', (ROOT / 'Makefile').read_text(encoding='utf-8'), re.M)
  assert set(argv) <= set(targets)


def check_launcher(words: list[str]) -> None:
  assert (ROOT / words[0]).is_file()


@pytest.mark.parametrize('page', PAGES, ids=lambda page: page.name)
def test_named_files_exist(page):
  """Code spans that are paths of the repository, and links."""
  text = page.read_text(encoding='utf-8')
  links = [x.partition('#')[0] for x in re.findall(r'\]\((?!https?:)([^)]+)\)', text)]
  missing = [link for link in links if link and not (page.parent / link).exists()]
  # The site has a page for each module, and none for other files beside docs/.
  if page.parent.name == 'docs':
    missing += [
      x for x in links if x.startswith('..') and not re.fullmatch(r'\.\./nlhf_jax/.+\.py', x)
    ]
  rooms = r'(configs|nlhf_jax|tests|benchmarks|launch|docs)/[\w/.-]+'
  missing += [s for s in spans(page) if re.fullmatch(rooms, s) and not (ROOT / s).exists()]
  modules = r'(?!t5x/)[a-z]\w*(/\w+)*\.py'
  missing += [
    s
    for s in spans(page)
    if re.fullmatch(modules, s) and not any((ROOT / x / s).exists() for x in ('', 'nlhf_jax'))
  ]
  assert not missing


@pytest.mark.parametrize('page', PAGES, ids=lambda page: page.name)
def test_named_macros_and_functions_exist(page):
  """Code spans that are macros of gin (NUM_STEPS), or functions and their arguments (checkpoints.Keep.last)."""
  configs = '\n'.join(x.read_text(encoding='utf-8') for x in (ROOT / 'configs').rglob('*.gin'))
  missing = []
  for span in spans(page):
    name = re.sub(r'^(--gin\.|@)|( =|\().*', '', span)
    if re.fullmatch(r'[A-Z]+(_[A-Z]+)+|[A-Z]{4,}', name):
      found = name in READERS_OWN or re.search(rf'^{name} =', configs, re.MULTILINE)
    else:
      is_file = re.search(r'\.(csv|gin|html|json|jsonl|md|py|sh|txt|yaml)$', name)
      is_name = re.fullmatch(r'\w+(\.\w+){1,2}', name) and not is_file
      found = not is_name or is_defined(*name.split('.'))
    if not found:
      missing.append(span)
  assert not missing


def is_defined(module: str, name: str, argument: str = '') -> bool:
  """Whether a module of the package has a function or class, and this the argument; true where there is no such module."""
  described = {'Experiment': 'experiment', 'Evaluation': 'tournament'}
  if module in described:
    return is_defined(described[module], module, name)
  paths = [x for x in (ROOT / 'nlhf_jax').rglob('*.py') if module in (x.stem, x.parent.name)]
  trees = [ast.parse(path.read_text(encoding='utf-8')) for path in paths]
  nodes = [
    x for x in ast.walk(ast.Module([y for t in trees for y in t.body], [])) if defines(x, name)
  ]
  arguments = {x.arg for node in nodes for x in ast.walk(node) if isinstance(x, ast.arg)}
  arguments |= {x.target.id for node in nodes for x in node.body if isinstance(x, ast.AnnAssign)}
  return not paths or (bool(nodes) and (not argument or argument in arguments))


def defines(node: ast.AST, name: str) -> bool:
  return isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name == name


def test_readme_is_short():
  assert (ROOT / 'README.md').stat().st_size <= 9216


def test_method_table_is_complete():
  """Each function of the README's table is in `algorithms`, and has a file; and the other way round."""
  readme = (ROOT / 'README.md').read_text(encoding='utf-8')
  rows = re.findall(r'^\| `(\w+)` \|', readme.partition('## The tree')[0], re.MULTILINE)
  files = {path.stem for path in (ROOT / 'configs' / 'algorithms').glob('*.gin')}
  source = (ROOT / 'nlhf_jax' / 'algorithms.py').read_text(encoding='utf-8')
  functions = re.findall(r'^def ([a-z]\w+)\((?:\n  )?(?:policy|model):', source, re.MULTILINE)
  assert set(rows) == set(functions) == files
