"""The command line of agents that learn one person's taste: `nlhf personalise`."""

import argparse
import inspect
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

from nlhf_jax import untrusted
from nlhf_jax.arguments import Count, CountOrZero, Seed, Several, Share
from nlhf_jax.cli import ranges

# Flags of the twin: name -> (range, default, help).
_TWIN = {
  'num_slots': (Count, 6, 'S, contexts that return (default: 6)'),
  'num_values': (Several, 6, 'N, values of a slot (default: 6)'),
  'num_rounds': (Count, 2000, 'T; a quarter, half and double of it are run too (default: 2000)'),
  'num_switches': (CountOrZero, 10, 'K, of one slot and of all (default: 10)'),
  'num_answers': (Several, 6, 'm, to a question (default: 6)'),
  'num_questions': (CountOrZero, 1, 'k, the most in a round (default: 1)'),
  'noise': (Share, 0.0, 'p, share of corrections that say anything (default: 0)'),
  'fresh_share': (Share, 0.0, 'γ, share of rounds about what comes up once (default: 0)'),
  'num_runs': (Count, 40, 'people, independent of each other (default: 40)'),
}
_SHOPPING = {'num_passes': (Count, 3, 'over the tasks of a learning phase (default: 3)')}
_HEADLINES = {
  'num_lives': (Count, 20, 'of each of six people who never voted (default: 20)'),
  'num_days': (Count, 120, 'held out, of which each life sees 120 at most (default: 120)'),
}
# Flag of what is served -> its own flags.
_KINDS: dict[str, dict[str, Any]] = {
  'benchmark': _SHOPPING,
  'twin': _TWIN,
  'run_dir': _HEADLINES,
}


def add(commands, command: Callable[..., argparse.ArgumentParser]) -> None:
  """Adds `nlhf personalise`."""
  parser = command(
    commands,
    'personalise',
    'Lets agents learn one person at a time, by questions and corrections, before and after tastes change.',
    'Writes results.json and personalisation.html. Users are simulated and feedback is structured: no result is one about language. '
    'Agents train nothing; they write notes.',
  )
  which = parser.add_mutually_exclusive_group(required=True)
  which.add_argument(
    '--benchmark', help="directory of PAHF's shopping benchmark: phase1.json … persona_info.json"
  )
  which.add_argument(
    '--twin', action='store_true', help='the exact twin: slots whose values switch'
  )
  which.add_argument(
    '--run_dir', help='headlines by a policy that reads notes: a run of --experiment=personal'
  )
  parser.add_argument('--output_dir', required=True, help='where results and page go')
  parser.add_argument(
    '--agents',
    nargs='+',
    metavar='NAME',
    help='none, constant (shopping), questions, corrections, both, history, doubt, curious (shopping), ours, oracle (default: all)',
  )
  ranges.add(parser, '--seed', Seed, default=0, help='of what is drawn')
  for kind, flags in _KINDS.items():
    group = parser.add_argument_group(f'with --{kind}')
    for name, (hint, _, text) in flags.items():
      ranges.add(group, f'--{name}', hint, help=text)


def personalise(args: argparse.Namespace) -> None:
  """Runs `nlhf personalise`."""
  from nlhf_jax.evaluation import personalisation_report, report
  from nlhf_jax.runtime import atomic, run_lock

  kind = next(name for name in _KINDS if getattr(args, name))
  directory = pathlib.Path(args.output_dir)
  source = 'the exact twin' if args.twin else args.benchmark or args.run_dir
  page = directory / 'personalisation.html'
  with run_lock.held(directory):
    results = {'benchmark': _shopping, 'twin': _twin, 'run_dir': _headlines}[kind](args)
    atomic.write_json(directory / 'results.json', {'source': source, **results}, indent=1)
    personalisation_report.write_page(results, source, page)
  out = report.console()
  out.print(personalisation_report.CAVEAT, markup=False, highlight=False)
  for table in personalisation_report.tables(results):
    out.print(table)
  out.print(untrusted.as_text(f'Report: {page}'))


def _shopping(args: argparse.Namespace):
  from nlhf_jax.personalisation import agents, shopping, summary
  from nlhf_jax.runtime import progress

  settings = _settings(args, 'benchmark')
  table = {'constant': agents.CONSTANT, **agents.AGENTS}
  chosen = agents.named(args.agents or list(table), table)
  benchmark = shopping.read(pathlib.Path(args.benchmark))
  total = len(chosen) * len({task.user for tasks in benchmark.tasks.values() for task in tasks})
  with progress.bar('users', total) as advance:
    return summary.of_shopping(benchmark, chosen, seed=args.seed, advance=advance, **settings)


def _twin(args: argparse.Namespace):
  from nlhf_jax.personalisation import agents, summary
  from nlhf_jax.personalisation import latent_preferences as twin
  from nlhf_jax.runtime import progress

  settings = _settings(args, 'twin')
  num_runs = settings.pop('num_runs')
  chosen = agents.named(args.agents or list(agents.IN_TWIN), agents.IN_TWIN)
  with progress.bar('simulations', len(chosen) * summary.NUM_SIMULATIONS) as advance:
    return summary.of_twin(
      twin.World(**settings), chosen, num_runs=num_runs, seed=args.seed, advance=advance
    )


def _headlines(args: argparse.Namespace):
  from nlhf_jax.cli import described
  from nlhf_jax.data import noted_tables
  from nlhf_jax.personalisation import agents, summary
  from nlhf_jax.runtime import checkpoints, progress, run_directory

  settings = _settings(args, 'run_dir')
  chosen = agents.named(args.agents or list(agents.AGENTS), agents.AGENTS)
  run_dir, _ = described.run_and_set(args.run_dir)
  if 'noted_headlines' not in run_directory.read_config(run_dir):
    raise ValueError(
      f'{args.run_dir} was not trained on prompts with notes: name a run of --experiment=personal.'
    )
  fields = checkpoints.read_metadata(run_dir / 'checkpoints')['fields']
  num_days = settings.pop('num_days')
  settings['num_unseen'] = num_unseen(fields)
  _check_corpus(args.run_dir, fields, num_days)
  contestant = described.contestant(args.run_dir)
  tables = noted_tables.of_policy(contestant, num_days, seed=_of_corpus(fields, 'seed'))
  with progress.bar('simulations', 2 * len(chosen)) as advance:
    return summary.of_headlines(tables, chosen, seed=args.seed, advance=advance, **settings)


def num_unseen(fields: Mapping[str, Any]) -> int:
  """Of the people, those who neither demonstrate nor vote in a run's corpus; from its resolved fields."""
  return _of_corpus(fields, 'num_unseen')


def _of_corpus(fields: Mapping[str, Any], argument: str) -> Any:
  """What a run's corpus was made with; from its resolved fields, which leave defaults out."""
  from nlhf_jax.data import corpora

  # That of training has no scope; those of what is measured have.
  bound = [name for name in fields if name.endswith(f'noted_headlines.{argument}')]
  if bound:
    return fields[min(bound, key=lambda name: name.count('/'))]
  return inspect.signature(corpora.noted_headlines).parameters[argument].default


def _check_corpus(run: str, fields: Mapping[str, Any], num_days: int) -> None:
  """Refuses a run that leaves nobody, or too few days, on which it was not trained."""
  if not num_unseen(fields):
    raise ValueError(
      f'In the corpus of {run} everybody votes (num_unseen = 0): nobody is left whom it does not know; '
      'name a run with corpora.noted_headlines.num_unseen above 0.'
    )
  held_out = _of_corpus(fields, 'num_test')
  if num_days > held_out:
    raise ValueError(
      f'--num_days={num_days} is more than the {held_out} days that {run} held out (corpora.noted_headlines.num_test): '
      'lower --num_days, or it is served days that it was trained on.'
    )


def _settings(args: argparse.Namespace, kind: str) -> dict[str, Any]:
  """Flags or their defaults; one of another kind is refused."""
  for other in set(_KINDS) - {kind}:
    for name in _KINDS[other]:
      if getattr(args, name) is not None:
        raise ValueError(f'--{name} goes with --{other}: leave it out.')
  given = {name: getattr(args, name) for name in _KINDS[kind]}
  return {name: _KINDS[kind][name][1] if x is None else x for name, x in given.items()}
