'use strict';
// Rollouts of training: filtered, sorted and shown. Texts are untrusted: they enter the page as text nodes alone.
(() => {
  const runs = JSON.parse(document.getElementById('rollouts-data').textContent);
  const PAGE = 20;
  const field = (name) => document.getElementById(`rollouts-${name}`);
  const controls = ['run', 'step', 'vote', 'cut', 'search', 'sort'].map(field);
  const [run, step, vote, cut, search, sort] = controls;
  const list = field('list'), count = field('count'), more = field('more'), left = field('left');
  let shown = PAGE;

  function element(tag, className, text) {
    const result = document.createElement(tag);
    if (className) result.className = className;
    if (text !== undefined) result.textContent = text;
    return result;
  }

  function option(select, value, text) {
    const result = element('option', '', text);
    result.value = value;
    select.append(result);
  }

  const signed = (x, digits) => (x > 0 ? '+' : x < 0 ? '−' : '') + Math.abs(x).toFixed(digits);
  const share = (x) => x.toFixed(3).replace(/^0/, '');
  const current = () => runs[Number(run.value)];

  const VOTES = {
    all: () => true,
    first: (row) => row.p !== null && row.p > 0.5,
    second: (row) => row.p !== null && row.p < 0.5,
    close: (row) => row.p !== null && Math.abs(row.p - 0.5) <= 0.05,
    sure: (row) => row.p !== null && Math.abs(row.p - 0.5) >= 0.45,
    none: (row) => row.p === null,
  };
  // Rows without a number come last, whichever way they are sorted.
  const by = (value, sign) => (a, b) => {
    const [x, y] = [value(a), value(b)];
    return x === y ? 0 : x === null ? 1 : y === null ? -1 : sign * (x - y);
  };
  const payoff = (row) => (row.p !== null ? row.p : row.reward ? row.reward[0] : null);
  const SORTS = {
    newest: by((row) => row.step, -1),
    oldest: by((row) => row.step, 1),
    high: by(payoff, -1),
    low: by(payoff, 1),
    ratio: by((row) => (row.log_ratio[0] === null ? null : Math.abs(row.log_ratio[0])), -1),
    length: by((row) => row.tokens[0], -1),
  };

  function fillSteps() {
    const steps = [...new Set(current().rows.map((row) => row.step))].sort((a, b) => b - a);
    const before = step.value;
    step.replaceChildren();
    option(step, '', 'all');
    for (const number of steps) option(step, String(number), String(number));
    if (steps.map(String).includes(before)) step.value = before;
  }

  function matches(words) {
    return (row) => {
      if (step.value && row.step !== Number(step.value)) return false;
      if (cut.checked && row.ended.every(Boolean)) return false;
      if (!VOTES[vote.value](row)) return false;
      return words.every((word) => row.lower.includes(word));
    };
  }

  // The text, with what is searched for marked.
  function marked(parent, text, words) {
    const lower = text.toLowerCase();
    // Some letters change their length: then places would not fit.
    const found = lower.length === text.length ? words : [];
    let place = 0;
    while (place < text.length) {
      let [next, size] = [text.length, 0];
      for (const word of found) {
        const at = lower.indexOf(word, place);
        if (at >= 0 && at < next) [next, size] = [at, word.length];
      }
      if (next > place) parent.append(text.slice(place, next));
      if (size) parent.append(element('mark', '', text.slice(next, next + size)));
      place = next + size;
    }
  }

  function response(row, i, words) {
    const side = element('div', `response ${'ab'[i]}`);
    const head = element('div', 'facts');
    head.append(element('b', 'who', row.drawn_by[i]));
    head.append(element('span', 'chip', `${row.tokens[i]} token${row.tokens[i] === 1 ? '' : 's'}`));
    if (!row.ended[i]) head.append(element('span', 'chip cut', 'cut at the limit'));
    if (row.log_ratio[i] !== null && row.log_ratio[i] !== undefined) {
      const chip = element('span', 'chip', `log π/μ ${signed(row.log_ratio[i], 2)}`);
      chip.title = 'Log-ratio to the reference in nats, of who drew the response.';
      head.append(chip);
    }
    if (row.reward) head.append(element('span', 'chip', `reward ${signed(row.reward[i], 3)}`));
    const text = element('div', 'text');
    if (row.responses[i]) marked(text, row.responses[i], words);
    else text.append(element('i', '', 'empty'));
    if (row.hidden[i + 1]) text.append(element('i', '', ` … ${row.hidden[i + 1]} more characters`));
    side.append(head, text);
    return side;
  }

  function verdict(row) {
    const result = element('div', 'verdict');
    if (row.p === null) {
      result.append(element('span', 'none', row.reward ? 'judged by reward' : 'no vote on this pair'));
    } else {
      const bar = element('div', 'bar');
      const first = element('div', 'of-a');
      first.style.width = `${100 * row.p}%`;
      bar.append(first);
      bar.setAttribute('role', 'img');
      bar.setAttribute('aria-label', `P(first preferred to second) = ${share(row.p)}`);
      result.append(element('b', 'p', `P = ${share(row.p)}`), bar);
    }
    if (row.opponents > 1 && row.mean !== null) {
      const mean = element('span', 'mean', `${share(row.mean)} over all ${row.opponents} opponents`);
      mean.title = 'What the update saw of the first response.';
      result.append(mean);
    }
    return result;
  }

  function card(row, words) {
    const result = element('article', 'rollout');
    result.tabIndex = 0;
    const head = element('div', 'head');
    head.append(element('span', 'step', `step ${row.step}`), verdict(row));
    const prompt = element('div', 'prompt');
    marked(prompt, row.prompt, words);
    if (row.hidden[0]) prompt.append(element('i', '', ` … ${row.hidden[0]} more characters`));
    const pair = element('div', 'pair');
    row.responses.forEach((_, i) => pair.append(response(row, i, words)));
    result.append(head, prompt, pair);
    return result;
  }

  function draw() {
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    const { rows, left_out: leftOut } = current();
    const chosen = rows.filter(matches(words)).sort(SORTS[sort.value]);
    list.replaceChildren(...chosen.slice(0, shown).map((row) => card(row, words)));
    count.textContent = `${chosen.length} of ${rows.length} pairs`;
    left.textContent = leftOut ? `The newest ${rows.length}; ${leftOut} older ones are in votes.jsonl.` : '';
    more.hidden = chosen.length <= shown;
    more.textContent = `Show ${Math.min(PAGE, chosen.length - shown)} more`;
    if (!chosen.length) list.append(element('p', 'note', 'No pair is so. Clear a filter.'));
  }

  function restart() {
    shown = PAGE;
    draw();
  }

  // j and k, or the arrows, go from one pair to the next; / searches; Escape clears the search.
  function move(event) {
    const typing = /^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName);
    if (event.key === '/' && !typing) {
      event.preventDefault();
      search.focus();
    } else if (event.key === 'Escape' && event.target === search) {
      search.value = '';
      restart();
    } else if (!typing && !event.ctrlKey && !event.metaKey && !event.altKey) {
      const cards = [...list.querySelectorAll('.rollout')];
      const at = cards.indexOf(document.activeElement);
      const arrows = at >= 0;
      const to = event.key === 'j' || (arrows && event.key === 'ArrowDown') ? at + 1
        : event.key === 'k' || (arrows && event.key === 'ArrowUp') ? at - 1 : null;
      if (to === null || !cards.length) return;
      event.preventDefault();
      if (to >= cards.length && !more.hidden) more.click();
      const next = list.querySelectorAll('.rollout')[Math.max(0, to)];
      if (next) {
        next.focus({ preventScroll: true });
        next.scrollIntoView({ block: 'nearest' });
      }
    }
  }

  runs.forEach((each, number) => {
    option(run, String(number), each.name);
    for (const row of each.rows) row.lower = [row.prompt, ...row.responses].join('\n').toLowerCase();
  });
  fillSteps();
  run.addEventListener('change', () => { fillSteps(); restart(); });
  for (const control of controls.slice(1)) control.addEventListener('input', restart);
  more.addEventListener('click', () => { shown += PAGE; draw(); });
  document.addEventListener('keydown', move);
  draw();
})();
