"""The process of `nlhf` and of `python -m nlhf_jax`: readied before anything is imported, then the command line."""

import gc
import os
import sys

# New containers of Python's between two looks for cycles among them. Tracing and imports make millions that live on: at the
# default of 700 these looks took a seventh of the time to a first step.
_GARBAGE_THRESHOLD = 50_000


def main() -> int:
  """Runs the sub-command of `sys.argv`."""
  _use_large_pages()
  gc.set_threshold(_GARBAGE_THRESHOLD)
  try:
    from nlhf_jax.cli import main as command_line
  except ModuleNotFoundError as error:
    if (error.name or '').startswith('nlhf_jax'):
      raise
    sys.exit(
      f'nlhf: the package of {error.name} is not installed: install nlhf_jax with what it needs, pip install -e . in a checkout.'
    )
  return command_line.main()


def _use_large_pages() -> None:
  """Starts this process again with glibc's 2 MiB pages, unless the user has set which.

  A compiled program on the CPU maps its temporary arrays anew at every call; with 4 KiB pages the page faults took up to
  half of a training step.
  """
  tunables = os.environ.get('GLIBC_TUNABLES', '')
  if sys.platform == 'linux' and 'glibc.malloc.hugetlb' not in tunables:
    os.environ['GLIBC_TUNABLES'] = ':'.join(filter(None, [tunables, 'glibc.malloc.hugetlb=1']))
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


if __name__ == '__main__':
  sys.exit(main())
