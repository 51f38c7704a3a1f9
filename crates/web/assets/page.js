// The page: which requests it sends to the server and when, and where it shows the answers.

import { Model, TRANSPORTS, colour, countOf, extent, inForce, originText, ownerText, processText, scopeText, transportsOf, user } from './model.js';
import { PortMap } from './map.js';

const $ = (id) => document.getElementById(id);
// Sockets come and go without an event. So the page asks for them this often while it is visible, in milliseconds.
const REFRESH = 5000;
// Events come in bursts.
const SETTLE = 300;
const ROWS = 100;
const EVENTS = 200;

let model = null;
let found = null;
let rows = ROWS;
let opened = null;
let stream = null;
let netns = '';

const element = (name, text = '', attributes = {}) => {
  const made = document.createElement(name);
  made.textContent = text;
  Object.entries(attributes).forEach(([key, value]) => made.setAttribute(key, value));
  return made;
};

const plural = (number, noun) => `${number.toLocaleString('en')} ${noun}${number === 1 ? '' : 's'}`;

const age = (since) => {
  const seconds = Math.max(0, (Date.now() - Date.parse(since)) / 1000);
  const [size, unit] = [[86400, 'd'], [3600, 'h'], [60, 'min'], [1, 's']].find(([size]) => seconds >= size) ?? [1, 's'];
  return `${Math.floor(seconds / size)} ${unit} ago`;
};

async function ask(path, parameters = {}) {
  const query = new URLSearchParams(netns ? { ...parameters, netns } : parameters).toString();
  const response = await fetch(query ? `${path}?${query}` : path);
  if (!response.ok) throw new Error((await response.text()).trim());
  return response.json();
}

// -- The map.

const map = new PortMap($('map'), {
  show(place, at, aloud = false) {
    const tip = $('tip');
    tip.hidden = !place || !model || !at;
    if (tip.hidden) return;
    const lines = model.describe(place.transport, place.port);
    const title = `${place.port}/${place.transport}`;
    tip.replaceChildren(element('b', title), ...lines.map((line) => element('div', line)));
    const stage = $('stage');
    const left = Math.min(at.x + 16, stage.clientWidth - tip.offsetWidth - 4);
    const below = at.y + 18 + tip.offsetHeight < stage.clientHeight;
    tip.style.left = `${Math.max(0, left)}px`;
    tip.style.top = `${below ? at.y + 18 : Math.max(0, at.y - tip.offsetHeight - 12)}px`;
    if (aloud) $('spoken').textContent = [title, ...lines].join('. ');
    clearTimeout(map.asking);
    map.asking = setTimeout(() => more(place, tip), 250);
  },
  open: (place) => open(place.port, place.transport),
  moved({ x, y, zoom }) {
    const side = 256 / zoom;
    const first = Math.floor(y) * 256 + Math.floor(x);
    const end = Math.min(65535, (Math.ceil(y + side) - 1) * 256 + Math.ceil(x + side) - 1);
    $('where').textContent = zoom > 1 ? `${Math.max(1, first)} to ${end}, ${zoom.toFixed(zoom < 10 ? 1 : 0)}×` : '';
  },
});

/** The processes at a port, once the pointer rests there. */
async function more({ transport, port }, tip) {
  if (tip.hidden || !model.socket(transport, port)) return;
  const here = map.hover ?? map.cursor;
  const answers = await ask('/api/who', { port }).catch(() => []);
  const still = map.hover ?? map.cursor;
  if (tip.hidden || here?.port !== still?.port || still?.port !== port) return;
  const answer = answers.find((each) => each.transport === transport);
  const bound = answer ? [...answer.bound_by, ...answer.connections] : [];
  const processes = new Set(bound.filter((socket) => socket.process).map((socket) => processText(socket.process)));
  [...processes].slice(0, 4).forEach((text) => tip.append(element('div', text)));
}

// -- Loading.

let loading = false;
let again = false;
let settle = 0;
let refresh = 0;

async function load() {
  if (loading) {
    again = true;
    return;
  }
  loading = true;
  clearTimeout(refresh);
  const begin = performance.now();
  try {
    const answer = await ask('/api/map');
    model = new Model(answer);
    search();
    summary(answer);
    document.body.dataset.loaded = answer.when;
  } catch (error) {
    $('summary').textContent = `portkeep-web does not answer: ${error.message}`;
  }
  loading = false;
  // If a machine has many ports, the page asks less often.
  const pause = Math.max(REFRESH, 10 * (performance.now() - begin));
  if (again) {
    again = false;
    soon();
  } else if (!document.hidden) {
    refresh = setTimeout(load, pause);
  }
}

function soon() {
  clearTimeout(settle);
  settle = setTimeout(load, SETTLE);
}

function summary(answer) {
  const active = answer.reservations.filter(inForce);
  const ports = (transport) => active.filter((each) => transportsOf(each).includes(transport)).reduce((sum, each) => sum + countOf(each), 0);
  const waiting = answer.reservations.length - active.length;
  const parts = [plural(active.length, 'reservation'), `${plural(ports('tcp'), 'port')} of TCP, ${ports('udp').toLocaleString('en')} of UDP`];
  if (waiting) parts.push(`${waiting} declared and not in force`);
  $('summary').textContent = parts.join(' · ');
  const notices = [...answer.not_seen];
  if (!answer.up) notices.push('Kernel enforcement is not up: nothing is reserved. An administrator can run `portkeep up`.');
  else if (!answer.agent) notices.push('No agent runs: declared reservations and events are not shown.');
  else if (answer.agent_answers === false) notices.push('The agent runs, but does not answer.');
  $('notices').replaceChildren(...notices.map((text) => element('li', text)));
}

async function namespaces() {
  const list = await ask('/api/namespaces').catch(() => []);
  $('namespace-label').hidden = list.length < 2;
  $('namespace').replaceChildren(...list.map(({ netns, netns_name: name }, index) =>
    element('option', name === 'this' ? 'of portkeep-web' : name ?? `${netns}`, { value: index === 0 ? '' : netns })));
}

// -- Search and table.

function search() {
  if (!model) return;
  found = model.find($('query').value);
  map.set(model, found);
  table();
}

function shown() {
  const [transport, state, kind] = ['by-transport', 'by-state', 'by-kind'].map((id) => $(id).value);
  return found.indexes.map((index) => model.reservations[index]).filter((each) =>
    (!transport || transportsOf(each).includes(transport))
    && (!state || (state === 'not' ? !inForce(each) : each.state === state))
    && (!kind || (kind === 'ephemeral' ? each.ephemeral : each.persistent === (kind === 'persistent'))));
}

function stateText(each) {
  if (each.state === 'active') return 'in force';
  if (each.state === 'pending') return 'being checked';
  return each.reason ? `${each.state}: ${each.reason}` : each.state;
}

function swatch(each) {
  const made = document.createElementNS('http://www.w3.org/2000/svg', 'svg');
  made.setAttribute('viewBox', '0 0 10 10');
  made.setAttribute('aria-hidden', 'true');
  const box = document.createElementNS('http://www.w3.org/2000/svg', 'rect');
  const [hue, saturation, lighter] = colour(ownerText(each));
  const fill = inForce(each) ? `hsl(${hue} ${saturation}% ${map.lightness + lighter}%)` : map.css[each.state === 'conflict' ? 'conflict' : 'waiting'];
  Object.entries({ width: 10, height: 10, rx: 2, fill }).forEach(([key, value]) => box.setAttribute(key, value));
  made.append(box);
  return made;
}

function row(each) {
  const made = element('tr', '', { class: each.state });
  const ports = element('td');
  const button = element('button', each.ports, { type: 'button' });
  button.addEventListener('click', () => {
    map.reveal(...extent(each));
    open(each.start, transportsOf(each)[0]);
  });
  ports.append(swatch(each), button);
  const since = element('td', each.since ? age(each.since) : '');
  if (each.since) since.title = each.since;
  const name = element('td', each.name ?? '');
  if (each.description) name.title = each.description;
  made.append(ports, element('td', each.transports), name, element('td', scopeText(each)), origin(each),
    element('td', stateText(each)), element('td', each.bound ? plural(each.bound, 'port') : ''), since);
  return made;
}

function origin(each) {
  const made = element('td', originText(each));
  made.title = each.owner?.command ?? originText(each, true);
  return made;
}

function table() {
  const list = shown();
  const body = $('rows');
  const focused = body.contains(document.activeElement) ? [...body.querySelectorAll('button')].indexOf(document.activeElement) : -1;
  body.replaceChildren(...list.slice(0, rows).map(row));
  if (focused >= 0) body.querySelectorAll('button')[focused]?.focus();
  $('count').textContent = list.length === model.reservations.length ? `${list.length}` : `${list.length} of ${model.reservations.length}`;
  $('more').hidden = list.length <= rows;
}

// -- Who.

async function open(port, transport) {
  opened = { port, transport };
  map.select(opened);
  const panel = $('who');
  panel.hidden = false;
  $('who-heading').textContent = `Port ${port}`;
  try {
    const answers = await ask('/api/who', { port });
    if (opened?.port !== port) return;
    answers.sort((one, other) => (other.transport === transport) - (one.transport === transport));
    $('who-body').replaceChildren(...answers.flatMap(facts));
  } catch (error) {
    $('who-body').replaceChildren(element('p', error.message));
  }
  panel.scrollIntoView({ block: 'nearest' });
}

function facts({ port, transport, reservation, bound_by: bound, connections, connection_count: count, waiting }) {
  const sockets = [...bound, ...connections];
  const list = element('dl');
  const fact = (name, value) => value && list.append(element('dt', name), element('dd', value));
  if (reservation) {
    fact('reservation', [reservation.name, `${reservation.ports}/${reservation.transports}`].filter(Boolean).join(', '));
    fact('description', reservation.description);
    fact('for', scopeText(reservation));
    fact(reservation.owner ? 'acquired by' : 'from', originText(reservation, true));
    fact('command', reservation.owner?.command);
    fact('unit', reservation.owner?.unit);
    fact('state', stateText(reservation));
    fact('since', reservation.since && `${reservation.since} (${age(reservation.since)})`);
  } else {
    fact('reservation', 'none');
  }
  const places = model?.places(port).join(', ');
  fact('place', places);
  const parts = [element('h3', `${port}/${transport}`), list];
  for (const each of waiting) {
    parts.push(element('p', `${each.name} (${each.ports}/${each.transports} for ${scopeText(each)}) is not in force: ${each.reason ?? each.state}`));
  }
  if (sockets.length === 0) return [...parts, element('p', 'no socket')];
  const lines = element('ul');
  for (const socket of sockets.slice(0, 50)) {
    const who = holder(socket);
    const ends = socket.peer ? `${socket.local} to ${socket.peer}` : socket.local;
    lines.append(element('li', `${socket.state} ${ends ?? ''}: ${who}`));
  }
  const more = Math.max(0, sockets.length - 50) + count - connections.length;
  if (more > 0) lines.append(element('li', `and ${more.toLocaleString('en')} more`));
  return [...parts, lines];
}

function holder(socket) {
  const left = socket.remaining === null ? '' : `, ${socket.remaining} s left`;
  const unit = socket.unit && socket.unit !== '/' ? `, ${socket.unit}` : '';
  if (socket.process) return `${processText(socket.process)}, ${user(socket.process)}${unit}`;
  if (socket.kernel) return 'the kernel itself';
  if (left || ['TIME-WAIT', 'closing'].includes(socket.state)) return `no process${left}`;
  return `a process of ${user(socket) || 'another user'}${unit} that cannot be seen from here`;
}

function close() {
  opened = null;
  $('who').hidden = true;
  map.select(null);
}

// -- Events.

function heard(event) {
  const [line] = $('events').children;
  const text = event.message;
  const key = `${event.what} ${event.ports} ${event.transports} ${event.process?.comm}`;
  const time = new Date(event.when).toLocaleTimeString();
  if (line?.dataset.key === key) {
    line.dataset.times = +line.dataset.times + 1 + event.unreported;
    line.querySelector('time').textContent = `${time}, ${line.dataset.times} times`;
  } else {
    const made = element('li', '', { class: event.what });
    Object.assign(made.dataset, { key, times: 1 + event.unreported });
    const button = element('button', text, { type: 'button' });
    const transport = event.transports === 'udp' ? 'udp' : 'tcp';
    button.addEventListener('click', () => {
      map.reveal(event.start, event.start + event.count - 1);
      open(event.start, transport);
    });
    made.append(element('time', time), button);
    $('events').prepend(made);
    while ($('events').children.length > EVENTS) $('events').lastChild.remove();
  }
  const here = !model || event.netns === model.map.netns;
  if (here && ['refused', 'denied', 'exhausted'].includes(event.what)) {
    const transports = event.transports === 'both' ? TRANSPORTS : [event.transports];
    transports.forEach((transport) => map.flash(transport, event.start));
  }
  soon();
}

function follow() {
  stream = new EventSource('/events');
  stream.addEventListener('event', (message) => heard(JSON.parse(message.data)));
  stream.addEventListener('missed', soon);
  stream.addEventListener('following', (message) => {
    const { following, reason } = JSON.parse(message.data);
    $('following').textContent = following ? 'live' : `not shown: ${reason}`;
    soon();
  });
  stream.addEventListener('error', () => { $('following').textContent = 'interrupted'; });
}

// A hidden page sends no requests.
function visible() {
  if (document.hidden) {
    stream?.close();
    stream = null;
    clearTimeout(refresh);
    clearTimeout(settle);
  } else {
    if (!stream) follow();
    load();
  }
}

$('query').addEventListener('input', () => {
  rows = ROWS;
  search();
});
$('search').addEventListener('submit', (event) => {
  event.preventDefault();
  if (!found || found.all) return;
  if (found.range) {
    map.reveal(...found.range);
    open(found.range[0], found.transport ?? 'tcp');
  } else if (found.indexes.length > 0) {
    const first = model.reservations[found.indexes[0]];
    map.reveal(...extent(first));
    open(first.start, transportsOf(first)[0]);
  }
});
['by-transport', 'by-state', 'by-kind'].forEach((id) => $(id).addEventListener('change', () => {
  rows = ROWS;
  table();
}));
$('more').addEventListener('click', () => {
  rows += 5 * ROWS;
  table();
});
$('namespace').addEventListener('change', () => {
  netns = $('namespace').value;
  close();
  load();
});
$('zoom-in').addEventListener('click', () => map.zoom(2));
$('zoom-out').addEventListener('click', () => map.zoom(0.5));
$('zoom-reset').addEventListener('click', () => map.reset());
$('who-close').addEventListener('click', () => {
  close();
  $('map').focus();
});
document.addEventListener('keydown', (event) => {
  if (event.key === 'Escape' && opened) close();
  if (event.key === '/' && document.activeElement === document.body) {
    event.preventDefault();
    $('query').focus();
  }
});
document.addEventListener('visibilitychange', visible);
namespaces();
visible();
