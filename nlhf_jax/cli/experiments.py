"""Experiments by name: a directory of gin files, whose stages.txt lists the runs, and contestants.txt who plays.

A line of stages.txt is `RUN [FILE …] [NAME=VALUE …]`: the gin files of a run (RUN.gin if none is named; of the directory, of the
search paths, or of another experiment) and bindings. `collect RUN …` is a run of `nlhf collect`, others are of `nlhf train`. A
line of contestants.txt is `RUN[:SET] LABEL`.
"""

import pathlib
import shlex
from typing import NamedTuple

from nlhf_jax import untrusted
from nlhf_jax.cli import gin_config

# Of `nlhf`, that run stages.
COMMANDS = ('train', 'collect')


class Stage(NamedTuple):
  """One run of an experiment."""

  # Its directory's name, too.
  name: str
  files: tuple[pathlib.Path, ...]
  bindings: tuple[str, ...]
  command: str


def locate(name: str) -> pathlib.Path:
  """The directory of an experiment: a path, or the name of one that the package brings.

  Raises:
    FileNotFoundError: there is no such experiment; the message lists those that there are.
  """
  shipped = gin_config.ROOT / 'configs' / 'experiments'
  for directory in (pathlib.Path(name), gin_config.ROOT / name, shipped / name):
    if (directory / 'stages.txt').is_file():
      return directory
  known = sorted(
    str(p.parent.relative_to(shipped).as_posix()) for p in shipped.glob('**/stages.txt')
  )
  raise FileNotFoundError(
    f'No experiment {name} (no stages.txt in it): known are {", ".join(known)}.'
  )


def stages(directory: pathlib.Path) -> list[Stage]:
  """The runs of an experiment, in the order in which they can be run.

  Raises:
    ValueError: a line is none of a stage, or two stages have one name; names file and line.
  """
  path, found = directory / 'stages.txt', {}
  for number, line in _numbered_lines(path):
    try:
      stage = _stage(directory, line)
    except ValueError as error:
      raise ValueError(f'{path}:{number}: {error}: write RUN [FILE …] [NAME=VALUE …].') from None
    if stage.name in found:
      raise ValueError(
        f'{path}:{number}: the run {stage.name!r} stands in an earlier line too: name one of them otherwise.'
      )
    found[stage.name] = stage
  return list(found.values())


def stage(name: str) -> Stage:
  """EXPERIMENT/RUN: one run of an experiment.

  Raises:
    FileNotFoundError: there is no such experiment, or it has no such run.
  """
  experiment, _, run = name.rstrip('/').rpartition('/')
  directory = locate(experiment or name)
  found = {stage.name: stage for stage in stages(directory)}
  if run not in found:
    raise FileNotFoundError(f'{directory} has no run {run!r}: its stages are {", ".join(found)}.')
  return found[run]


def evaluation(name: str) -> pathlib.Path:
  """The file of an experiment that says which prompts and which judge its policies are compared by.

  Raises:
    FileNotFoundError: there is no such experiment, or it has no such file.
  """
  path = locate(name) / 'evaluation.gin'
  if not path.is_file():
    raise FileNotFoundError(
      f'{path.parent} has no evaluation.gin: name one of another with --gin_file.'
    )
  return path


def contestants(directory: pathlib.Path) -> dict[str, str]:
  """Label -> RUN or RUN:SET.

  Raises:
    ValueError: a line has no label, or two lines have one; names file and line.
  """
  path, found = directory / 'contestants.txt', {}
  for number, line in _numbered_lines(path):
    run, *rest = line.split(None, 1)
    if not rest:
      raise ValueError(f'{path}:{number}: {run!r} has no label: write RUN[:SET] LABEL.')
    if rest[0] in found:
      raise ValueError(
        f'{path}:{number}: the label {rest[0]!r} stands in an earlier line too: give each contestant its own.'
      )
    found[rest[0]] = run
  return found


def _numbered_lines(path: pathlib.Path) -> list[tuple[int, str]]:
  """Numbers and lines of a text file, without blank ones and comments; raises as `read_text`."""
  lines = ((number, line.strip()) for number, line in enumerate(split_lines(path), start=1))
  return [(number, line) for number, line in lines if line and not line.startswith('#')]


def split_lines(path: pathlib.Path) -> list[str]:
  """Lines of a text file as editors count them: separators of Unicode and form feeds belong to a line. Raises as `read_text`."""
  return [line.removesuffix('\r') for line in read_text(path).split('\n')]


def read_text(path: pathlib.Path) -> str:
  """A text file.

  Raises:
    FileNotFoundError: there is no such file.
    ValueError: it is not in UTF-8.
  """
  if not path.is_file():
    raise FileNotFoundError(f'No file {path}.')
  return untrusted.read_text(path)


def _stage(directory: pathlib.Path, line: str) -> Stage:
  words = shlex.split(line, posix=False)
  command = words.pop(0) if words[0] in COMMANDS and len(words) > 1 else 'train'
  name, *rest = words
  bindings = tuple(word for word in rest if '=' in word)
  files = [word for word in rest if '=' not in word] or [f'{name}.gin']
  beside = [directory / file for file in files]
  chosen = (
    path if path.is_file() else pathlib.Path(file) for path, file in zip(beside, files, strict=True)
  )
  return Stage(name, tuple(chosen), bindings, command)
