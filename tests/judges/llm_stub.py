"""A stub of a chat/completions server on loopback, which can be slow, biased, malformed, rate-limiting and dying."""

import collections
import http.server
import json
import math
import re
import threading
import time
import types
from collections.abc import Mapping
from typing import Any, NamedTuple

KEY = 'sk-stub-0123456789abcdef'


class Reply(NamedTuple):
  """What the stub does with a call."""

  text: str = 'A'
  status: int = 200
  headers: Mapping[str, str] = types.MappingProxyType({})
  # Seconds before the answer.
  delay: float = 0.0
  # Log-probs of the answer's one token by letter; None: the server gives none.
  log_probs: dict[str, float] | None = None
  # In place of all of it.
  body: str | None = None
  close: bool = False


def question(body: dict[str, Any]) -> str:
  return body['messages'][0]['content']


def shown(body: dict[str, Any]) -> tuple[str, str]:
  """The two responses in a filled chat template."""
  text = question(body)
  return tuple(
    re.search(rf'<response_{x}>\n(.*?)\n</response_{x}>', text, re.DOTALL)[1] for x in 'AB'
  )


def longer(number: int, body: dict[str, Any]) -> Reply:
  """An unbiased judge."""
  first, second = shown(body)
  return Reply('C' if len(first) == len(second) else 'AB'[len(first) < len(second)])


class _Server(http.server.ThreadingHTTPServer):
  daemon_threads = True
  request_queue_size = 128  # Many connect at a time; who does not fit tries again after a second.


class Stub:
  """Answers each call by `behave(number of the call, its body)`."""

  def __init__(self, behave):
    self.behave = behave
    self.calls, self.answered, self.max_at_once = 0, collections.Counter(), 0
    self.authorizations, self.bodies = set(), []
    self._at_once, self._lock = 0, threading.Lock()
    self.stopped = threading.Event()
    self._server = _Server(('127.0.0.1', 0), self._handler())
    self.url = f'http://127.0.0.1:{self._server.server_port}/v1'

  def __enter__(self):
    threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()
    return self

  def __exit__(self, *error):
    self.stopped.set()
    self._server.shutdown()
    self._server.server_close()

  def wait(self, seconds: float) -> None:
    """Holds an answer back; ends with the stub."""
    self.stopped.wait(seconds)

  def _handler(stub):
    class Handler(http.server.BaseHTTPRequestHandler):
      protocol_version = 'HTTP/1.1'
      wbufsize = -1  # Head and body in one packet: else each answer waits for an acknowledgement.

      def log_message(self, *args):
        pass

      def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers['Content-Length'])))
        with stub._lock:
          stub.calls += 1
          number = stub.calls
          stub.bodies.append(body)
          stub.authorizations.add(self.headers.get('Authorization'))
          stub._at_once += 1
          stub.max_at_once = max(stub.max_at_once, stub._at_once)
        try:
          reply = stub.behave(number, body)
          time.sleep(reply.delay)
          with stub._lock:
            stub._at_once -= 1
          self._send(reply, body)
        except (BrokenPipeError, ConnectionResetError):
          self.close_connection = True

      def _send(self, reply, body):
        if reply.close:
          self.close_connection = True
          return
        content = (reply.body if reply.body is not None else completion(reply)).encode()
        self.send_response(reply.status)
        for name, value in {'Content-Length': str(len(content)), **reply.headers}.items():
          self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)
        self.wfile.flush()
        if reply.status == 200:
          with stub._lock:
            stub.answered[body['model'], question(body)] += 1

    return Handler


def completion(reply: Reply) -> str:
  choice = {'message': {'role': 'assistant', 'content': reply.text}, 'finish_reason': 'stop'}
  if reply.log_probs is not None:
    top = [{'token': token, 'logprob': value} for token, value in reply.log_probs.items()]
    entry = {
      'token': reply.text,
      'logprob': reply.log_probs.get(reply.text, math.log(0.5)),
      'top_logprobs': top,
    }
    choice['logprobs'] = {'content': [entry]}
  return json.dumps({'choices': [choice], 'usage': {'total_tokens': 100}})
