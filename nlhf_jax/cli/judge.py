"""The command line of LLM judges: `nlhf judge`, responses in, votes out."""

import argparse
import collections
import contextlib
import json
import pathlib
from collections.abc import Callable, Iterable
from typing import Any

from nlhf_jax import untrusted
from nlhf_jax.arguments import Count, CountOrZero, Positive, Share
from nlhf_jax.cli import ranges, responses


def add_judge(commands, command: Callable[..., argparse.ArgumentParser]) -> None:
  """Adds `nlhf judge`."""
  parser = command(
    commands,
    'judge',
    'Lets LLMs behind an OpenAI-compatible server compare responses, and writes their votes.',
    'Every two labels are compared on the prompts that both answer, in both orders, by every model. A judgement that fails is '
    'no vote, and is counted. A run that ended early goes on where it stopped, and repeats no call that was answered.',
  )
  responses.add(parser)
  parser.add_argument('--output', required=True, help='JSONL file of votes')
  _add_server(parser.add_argument_group('server'))
  group = parser.add_argument_group('limits')
  ranges.add(group, '--max_calls', Count, help='requests, retries among them')
  ranges.add(group, '--max_tokens_total', Count, help='tokens of questions and answers')
  ranges.add(
    group,
    '--max_failed_share',
    Share,
    default=0.1,
    help='of judgements, once there are 20; more end the run (default: 0.1)',
  )


def _add_server(group) -> None:
  group.add_argument('--model', action='append', required=True, help='a judge (repeatable)')
  group.add_argument(
    '--base_url',
    default='https://api.openai.com/v1',
    help='of the server (default: https://api.openai.com/v1)',
  )
  group.add_argument(
    '--key_variable',
    default='OPENAI_API_KEY',
    help='environment variable that holds the key, if the server wants one (default: OPENAI_API_KEY)',
  )
  group.add_argument(
    '--template', default='chat', help='chat, summary, or a file (default: chat; docs/votes.md)'
  )
  group.add_argument(
    '--parameters',
    default='{}',
    metavar='JSON',
    help='fields of the requests, such as {"max_tokens": 1, "top_logprobs": 5}; null leaves one out',
  )
  ranges.add(group, '--concurrency', Count, default=8, help='calls at a time (default: 8)')
  ranges.add(group, '--timeout', Positive, default=60.0, help='seconds a call (default: 60)')
  ranges.add(group, '--num_retries', CountOrZero, default=5, help='of a call (default: 5)')
  group.add_argument(
    '--cache_dir', help='directory of answers (default: judge_cache beside the output)'
  )


def judge(args: argparse.Namespace) -> None:
  """Runs `nlhf judge`."""
  from nlhf_jax.runtime import run_lock
  from nlhf_jax.votes import vote_file

  output = pathlib.Path(args.output)
  vote_file.check_name(output)
  panel, pairs = _panel(args), responses.pairs(args)
  with run_lock.file_held(output):
    _judge(panel, pairs, output)


def _judge(panel, pairs, output: pathlib.Path) -> None:
  """Asks what is not in the file yet, and appends the votes."""
  from nlhf_jax.votes import table, vote_file

  failures: collections.Counter[str] = collections.Counter()
  with contextlib.closing(vote_file.VoteFile(output, table.checked)) as file:
    _check_settings(panel, output)
    stopped = _add_votes(panel, pairs, file, failures)
  num_votes = _print_summary(output, failures, panel.spending)
  if stopped is not None:
    raise ValueError(
      f'{stopped} {num_votes} votes are in {output}; the same command goes on from there.'
    )
  if failures and not num_votes:
    raise ValueError(
      f'No judgement succeeded: {_counts(failures)}. Check the template and the model.'
    )


def _add_votes(panel, pairs, file, failures: collections.Counter[str]) -> ValueError | None:
  """Appends a vote to the file as soon as it is cast, and counts failures; why it ended early, if it did."""
  from nlhf_jax.cli import judge_files
  from nlhf_jax.runtime import progress

  wanted, num_before = _wanted(panel, pairs, judge_files.done(file.path))
  with progress.bar('judgements', sum(map(len, wanted.values()))) as advance:

    def record(judgement) -> None:
      labels = wanted[judgement.question]
      if judgement.failure is not None:
        failures[judgement.failure] += len(labels)
      else:
        for a, b in labels:
          file.append(json.dumps(judge_files.vote(judgement, a, b), ensure_ascii=False))
      advance(len(labels))

    try:
      panel.judge(list(wanted), record, num_before)
    except ValueError as error:
      return error
  return None


def _wanted(panel, pairs, done) -> tuple[dict[Any, list[tuple[str, str]]], int]:
  """Whom each question that is still to be asked is about, and how many votes are there."""
  from nlhf_jax.cli import judge_files
  from nlhf_jax.judges.llm import TextPair

  wanted: dict[Any, list[tuple[str, str]]] = collections.defaultdict(list)
  num_before = 0
  for pair in pairs:
    labels = pair.a, pair.b
    for question in panel.questions([TextPair(pair.prompt, pair.response_a, pair.response_b)]):
      if judge_files.key(question, *labels) in done:
        num_before += 1
      else:
        wanted[question].append(labels)
  return wanted, num_before


def _panel(args: argparse.Namespace):
  from nlhf_jax.judges import llm, llm_settings

  given = _parameters(args.parameters)
  parameters = {k: v for k, v in (llm.PARAMETERS | given).items() if v is not None}
  server = llm_settings.Server(
    args.base_url, args.key_variable, args.concurrency, args.timeout, args.num_retries
  )
  return llm.Panel(
    args.model,
    args.template,
    server=server,
    parameters=parameters,
    budget=llm_settings.Budget(args.max_calls, args.max_tokens_total),
    cache_dir=args.cache_dir or str(pathlib.Path(args.output).parent / 'judge_cache'),
    failures=llm.FailureLimit(args.max_failed_share),
  )


def _parameters(text: str) -> dict[str, Any]:
  from nlhf_jax.judges import llm_settings

  try:
    given = untrusted.parse_json(text.encode())
  except ValueError:
    given = None
  if not isinstance(given, dict):
    raise ValueError(f'--parameters must be a JSON object, got {untrusted.quoted(text)}.')
  # A null is one too, before it leaves a field out.
  llm_settings.validate_parameters(given)
  return given


def _check_settings(panel, output: pathlib.Path) -> None:
  """Votes of one file are answers to one question: its template and parameters stand beside it."""
  from nlhf_jax.runtime import atomic

  path = output.with_suffix('.settings.json')
  template = panel.template
  settings = {
    'template': ''.join(f'{{{x}}}' if i % 2 else x for i, x in enumerate(template.pieces)),
    'answers': list(template.answers),
    'parameters': panel.parameters,
  }
  if output.stat().st_size and path.exists():
    before = untrusted.read_json(path)
    for name, value in settings.items():
      if not isinstance(before, dict) or before.get(name) != value:
        raise ValueError(
          f'{output} holds votes by other settings: its {name} is not the one given. Name another --output.'
        )
  atomic.write_json(path, settings, ensure_ascii=False)


def _print_summary(output: pathlib.Path, failures, spending) -> int:
  """Votes, failures, and how reliable each judge is; the number of votes in the file."""
  from nlhf_jax.cli import judge_files
  from nlhf_jax.evaluation import report
  from nlhf_jax.votes import agreement, table

  rows = list(judge_files.votes(output))
  out = report.console()
  for line in (
    f'{len(rows)} votes in {output}.',
    f'Failed judgements: {_counts(failures) or "none"}.',
    f'{spending.num_calls} calls, {spending.num_tokens:,} tokens; {spending.num_cached} answers from the cache.',
  ):
    out.print(untrusted.as_text(line), soft_wrap=True)
  if rows:
    out.print(_judges_table(agreement.judges(table.columns(rows)), flips(rows)))
  return len(rows)


def _counts(failures) -> str:
  return ', '.join(f'{kind} {count}' for kind, count in failures.most_common())


def flips(rows: Iterable[dict[str, Any]]) -> dict[str, tuple[int, int]]:
  """By judge: pairs whose winner changes with the order, and pairs that have a winner in both orders."""
  winners: dict[tuple, dict[str, bool]] = collections.defaultdict(dict)
  for row in rows:
    p = row['probability']
    for_a = {'a': 1.0, 'b': 0.0}.get(row['verdict'], 0.5) if p is None else p
    if row['order'] is not None and for_a != 0.5:
      fields = ('judge', 'prompt', 'a', 'b', 'response_a', 'response_b')
      winners[tuple(row[name] for name in fields)][row['order']] = for_a > 0.5
  result: dict[str, tuple[int, int]] = {}
  for (name, *_), by_order in winners.items():
    if len(by_order) == 2:
      flipped, both = result.get(name or '', (0, 0))
      result[name or ''] = flipped + (len(set(by_order.values())) == 2), both + 1
  return result


def _judges_table(judges, flipped: dict[str, tuple[int, int]]):
  import rich.table

  from nlhf_jax.evaluation import ranking_report

  result = rich.table.Table(title='Judges')
  for name in ('judge', 'votes', 'ties', 'first shown wins', 'flips', 'agrees with others'):
    result.add_column(name, justify='left' if name == 'judge' else 'right')
  for one in judges:
    first = ranking_report.first_wins(one)
    agrees = ranking_report.share_of(one.agreement, one.num_compared)
    count, both = flipped.get(one.name, (0, 0))
    flips_shown = ranking_report.share_of(count / both if both else float('nan'), both)
    numbers = f'{one.num_votes:,.0f}', f'{one.tie_share:.3f}'
    result.add_row(untrusted.as_text(one.name or 'not named'), *numbers, first, flips_shown, agrees)
  return result
