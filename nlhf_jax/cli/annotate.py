"""`nlhf annotate`: a local page on which people compare two responses.

Pages are rendered here and need no script but for the keyboard. Responses are untrusted text: the template escapes
everything, and the content security policy runs no script but the page's own. Labels never leave the server. Requests are
answered one at a time, so that votes need no lock within the process.
"""

import argparse
import hashlib
import ipaddress
import pathlib
import secrets
import socket
import sys
import urllib.parse
from collections.abc import Callable
from typing import Annotated, Any

from nlhf_jax.arguments import Range, Seed
from nlhf_jax.cli import ranges, responses
from nlhf_jax.runtime import run_lock
from nlhf_jax.votes import annotation
from nlhf_jax.votes.responses import Pair

_VERDICTS = ('first', 'second', 'tie', 'both_bad', 'skip')
# A vote is a name, a token and a verdict.
_MAX_BODY = 4096
_Port = Annotated[int, Range(lambda n: 0 <= n < 2**16, 'a whole number from 0 to 65535')]
_LOOPBACK = ('localhost', '127.0.0.1', '::1')


def add(commands, command: Callable[..., argparse.ArgumentParser]) -> None:
  """Adds `nlhf annotate`."""
  parser = command(
    commands,
    'annotate',
    'Serves a page on which people compare two responses, and records their votes.',
    'Every two labels on one prompt are compared, blind and in random order, by every annotator. Votes are appended to --output; '
    'what is in it is not asked again.',
  )
  responses.add(parser)
  parser.add_argument('--output', required=True, help='JSONL file of votes')
  parser.add_argument('--host', default='127.0.0.1', help='address to listen on (default: here)')
  ranges.add(parser, '--port', _Port, default=8000, help='0: any that is free')
  ranges.add(parser, '--seed', Seed, default=0, help='of the orders')


def annotate(args: argparse.Namespace) -> None:
  """Runs `nlhf annotate` until it is interrupted."""
  try:
    import starlette  # noqa: F401
    import uvicorn
  except ImportError:
    raise ValueError("needs starlette and uvicorn: pip install 'nlhf_jax[annotate]'") from None
  tasks = responses.pairs(args)
  output = pathlib.Path(args.output)
  with run_lock.file_held(output):
    listener = _listen(args.host, args.port)
    votes = annotation.Annotations(output, tasks, args.seed)
    app = make_app(votes, allowed_hosts(args.host))
    _announce(args, listener.getsockname()[1], votes, len(tasks))
    config = uvicorn.Config(
      app, log_level='warning', access_log=False, lifespan='off', ws='none', server_header=False
    )
    try:
      uvicorn.Server(config).run(sockets=[listener])
    except KeyboardInterrupt:
      pass
    finally:
      votes.close()
  print(f'{votes.num_votes()} votes on these tasks: {args.output}')


def _listen(host: str, port: int) -> socket.socket:
  try:
    family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
    return socket.create_server((host, port), family=family)
  except (OSError, OverflowError) as error:
    reason = getattr(error, 'strerror', None) or error
    raise ValueError(
      f'Cannot listen on {_authority(host, port)} ({reason}): choose others with --host and --port.'
    ) from None


def _authority(host: str, port: int) -> str:
  return f'[{host}]:{port}' if ':' in host else f'{host}:{port}'


def _announce(args: argparse.Namespace, port: int, votes: annotation.Annotations, num_tasks: int):
  if not _is_loopback(args.host):
    print(
      f'Warning: whoever reaches {_authority(args.host, port)} can read the responses and vote under any name, unencrypted.',
      file=sys.stderr,
    )
  print(f'{num_tasks} tasks, {votes.num_votes()} votes on them in {args.output}.')
  print(f'http://{_authority(args.host, port)}/   (Ctrl-C ends)', flush=True)


def _is_loopback(host: str) -> bool:
  address = _address(host)
  return host == 'localhost' if address is None else address.is_loopback


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
  try:
    return ipaddress.ip_address(host)
  except ValueError:
    return None


def allowed_hosts(host: str) -> Callable[[str], bool]:
  """Which names a browser may call the server by.

  Another name is refused: a foreign site can let its own name point here, and would then be of the same origin.

  Args:
    host: what the server listens on; a loopback address: loopback names alone.
  """
  if _is_loopback(host):
    return lambda name: name in (*_LOOPBACK, host)
  own = {host.lower(), socket.gethostname().lower(), socket.getfqdn().lower(), 'localhost'}
  # No foreign site has an address for a name.
  return lambda name: name in own or _address(name) is not None


def make_app(votes: annotation.Annotations, is_own_host: Callable[[str], bool]):
  """The pages, as an ASGI application.

  Args:
    votes: tasks and storage.
    is_own_host: of `allowed_hosts`.
  """
  from starlette import applications, exceptions, routing

  pages = _Pages(votes, is_own_host)
  routes = [
    routing.Route('/', pages.home),
    routing.Route('/task', pages.task),
    routing.Route('/vote', pages.vote, methods=['POST']),
    routing.Route('/undo', pages.undo, methods=['POST']),
    routing.Route('/skipped', pages.skipped, methods=['POST']),
  ]
  handlers: dict[Any, Any] = {exceptions.HTTPException: pages.refused, OSError: pages.failed}
  return applications.Starlette(routes=routes, exception_handlers=handlers)


class _Pages:
  """What is answered to each request. Handlers are coroutines that never wait once they have the form: one at a time."""

  def __init__(self, votes: annotation.Annotations, is_own_host: Callable[[str], bool]):
    import jinja2

    self._votes, self._is_own_host = votes, is_own_host
    environment = jinja2.Environment(
      loader=jinja2.PackageLoader('nlhf_jax.cli', '.'),
      autoescape=True,
      undefined=jinja2.StrictUndefined,
    )
    self._template = environment.get_template('annotate.html')
    # Tokens of tasks tell nothing of labels to who does not know this.
    self._secret = secrets.token_bytes(16)
    self._tasks = {self._token(task): task for task in votes.tasks()}

  async def home(self, request):
    """Asks for a name."""
    self._check_host(request)
    return self._page('home')

  async def task(self, request):
    """The annotator's next task, or the end."""
    self._check_host(request)
    return self._show(self._voter(request.query_params.get('voter', '')))

  async def vote(self, request):
    """Records a verdict, or skips; the next page comes when the vote is on disk."""
    form = await self._form(request, ('voter', 'task', 'verdict'))
    voter, task = self._voter(form['voter']), self._task(form['task'])
    if form['verdict'] not in _VERDICTS:
      self._refuse(400, f'No verdict {form["verdict"][:40]!r}: one of {", ".join(_VERDICTS)}.')
    if form['verdict'] == 'skip':
      self._votes.skip(voter, task)
    else:
      self._votes.vote(voter, task, form['verdict'])
    return self._next(voter)

  async def undo(self, request):
    """Takes back what the annotator did last, if that was on the task that the page names: once, however often sent."""
    form = await self._form(request, ('voter', 'task'))
    voter, task = self._voter(form['voter']), self._task(form['task'])
    last = self._votes.last(voter)
    if last is not None and last[0].task == task:
      self._votes.undo(voter)
    return self._next(voter)

  async def skipped(self, request):
    """Asks what was skipped again."""
    form = await self._form(request, ('voter',))
    voter = self._voter(form['voter'])
    self._votes.ask_skipped(voter)
    return self._next(voter)

  async def refused(self, request, error):
    """What was wrong, on a page."""
    del request
    return self._page('message', error.status_code, message=error.detail)

  async def failed(self, request, error):
    """A vote that could not be written."""
    del request
    return self._page('message', 500, message=f'Not recorded: {error}')

  def _show(self, voter: str):
    question, last = self._votes.question(voter), self._votes.last(voter)
    return self._page(
      'end' if question is None else 'question',
      voter=voter,
      progress=self._votes.progress(voter),
      prompt=None if question is None else question.task.prompt,
      responses=() if question is None else question.texts(),
      token=None if question is None else self._token(question.task),
      last=None if last is None else {'token': self._token(last[0].task), 'verdict': last[1]},
    )

  def _next(self, voter: str):
    from starlette.responses import RedirectResponse

    return RedirectResponse(f'/task?{urllib.parse.urlencode({"voter": voter})}', 303)

  def _page(self, kind: str, status: int = 200, **context):
    from starlette.responses import HTMLResponse

    nonce = secrets.token_urlsafe(16)
    policy = (
      f"default-src 'none'; style-src 'nonce-{nonce}'; script-src 'nonce-{nonce}'; form-action 'self'; "
      "base-uri 'none'; frame-ancestors 'none'"
    )
    # A page that the browser kept would show a task that has its vote. Without a referrer, browsers send no origin.
    headers = {
      'Content-Security-Policy': policy,
      'Cache-Control': 'no-store',
      'Referrer-Policy': 'same-origin',
      'X-Content-Type-Options': 'nosniff',
    }
    page = self._template.render(kind=kind, nonce=nonce, **context)
    return HTMLResponse(page, status, headers)

  def _check_host(self, request) -> str:
    host = request.headers.get('host', '')
    try:
      name = urllib.parse.urlsplit(f'//{host}').hostname or ''
    except ValueError:
      name = ''
    if not self._is_own_host(name):
      self._refuse(403, f'This server is not {host[:80]!r}.')
    return host

  async def _form(self, request, names: tuple[str, ...]) -> dict[str, str]:
    """The fields of a form that this server's own page has sent."""
    host, origin = self._check_host(request), request.headers.get('origin', '')
    if origin not in (f'http://{host}', f'https://{host}'):
      self._refuse(403, f'Votes come from the pages of {host}, not from {origin[:80]!r}.')
    body = b''
    async for part in request.stream():
      body += part
      if len(body) > _MAX_BODY:
        self._refuse(413, f'A form has at most {_MAX_BODY} bytes.')
    try:
      fields = urllib.parse.parse_qsl(
        body.decode(), keep_blank_values=True, strict_parsing=True, errors='strict'
      )
    except ValueError:
      fields = []
    if sorted(name for name, _ in fields) != sorted(names):
      self._refuse(400, f'A form with {", ".join(names)} was expected.')
    return dict(fields)

  def _voter(self, text: str) -> str:
    try:
      return annotation.annotator_name(text)
    except ValueError as error:
      return self._refuse(400, str(error))

  def _task(self, token: str) -> Pair:
    if token not in self._tasks:
      self._refuse(400, 'The page is older than the server: go on with the next task.')
    return self._tasks[token]

  def _token(self, task: Pair) -> str:
    content = repr(tuple(task)).encode()
    return hashlib.blake2b(content, key=self._secret, digest_size=16).hexdigest()

  def _refuse(self, status: int, message: str):
    from starlette import exceptions

    raise exceptions.HTTPException(status, message)
