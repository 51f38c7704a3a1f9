// Ports, reservations and sockets as the server reports them, arranged by port.

export const TRANSPORTS = ['tcp', 'udp'];
export const PORTS = 65536;

// Kinds of sockets, the most important one last.
const STATES = ['', 'TIME-WAIT', 'closing', 'connecting', 'connected', 'bound', 'listening'];
/** The ranks of all kinds. */
export const SOCKETS = [...STATES.keys()].slice(1);
export const CONNECTED = STATES.indexOf('connected');
export const BOUND = STATES.indexOf('bound');

/** First and last port of each range in a text such as "22,8000-8010". */
export function spans(text) {
  if (!text) return [];
  return text.split(',').map((part) => {
    const [first, last] = part.split('-').map(Number);
    return [first, last ?? first];
  });
}

export const transportsOf = (reservation) =>
  reservation.transports === 'both' ? TRANSPORTS : [reservation.transports];

/** First and last port of each of its blocks: a list of ports has several. */
export const blocksOf = (reservation) =>
  (reservation.blocks ?? [reservation]).map(({ start, count }) => [start, start + count - 1]);

export const countOf = (reservation) => blocksOf(reservation).reduce((sum, [first, end]) => sum + end - first + 1, 0);

/** First and last port of it all. */
export const extent = (reservation) => [reservation.start, blocksOf(reservation).at(-1)[1]];

export const inForce = (reservation) => reservation.state === 'active' || reservation.state === 'pending';

export function user(process) {
  return process.user ?? (process.uid === null ? '' : `uid ${process.uid}`);
}

/** "pid 812 (nginx)". */
export const processText = (process) => `pid ${process.pid} (${process.comm})`;

/** "unit nginx.service"; of several each. */
const audienceText = ({ kind, value }) =>
  Array.isArray(value) ? value.map(audienceText).join(', ') : [kind, value].filter((part) => part !== null).join(' ');

/** The audience or the owner: reservations with the same text have the same colour. */
export function ownerText(reservation) {
  const { owner, audience } = reservation;
  if (audience) return audienceText(audience);
  if (!owner) return 'a service or cgroup';
  return owner.unit && owner.unit !== '/' ? owner.unit : `${owner.comm}, ${user(owner)}`;
}

/** The processes that may use it. */
export function scopeText(reservation) {
  const { scope, audience, owner } = reservation;
  let text = audience ? ownerText(reservation) : 'a service or cgroup';
  if (scope?.kind === 'process') text = processText(owner);
  if (scope?.kind === 'user') text = `user ${user(owner)}`;
  if (scope?.kind === 'cgroup') text = `cgroup ${reservation.cgroup ?? scope.value}`;
  if (reservation.also?.length) text += `, also ${reservation.also.map(audienceText).join(', ')}`;
  if (reservation.strict) text += ', associated sockets only';
  if (reservation.ephemeral) text += ', private ephemeral range';
  return text;
}

/** Which process, file or command made it. */
export function originText(reservation, whole = false) {
  const { owner, origin } = reservation;
  if (owner) return `${processText(owner)}, ${user(owner)}`;
  if (!origin) return '';
  if (origin.path) {
    const path = whole ? origin.path : origin.path.split('/').at(-1);
    return origin.line ? `${path}:${origin.line}` : path;
  }
  const by = origin.uid === 0 ? 'root' : `uid ${origin.uid}`;
  return origin.uid === null ? '`portkeep persist add`' : `\`portkeep persist add\`, by ${by}`;
}

// The golden ratio keeps the colours of owners apart, however many there are. An owner keeps its colour while the page is open.
const GOLDEN = 0.618034;
const owners = new Map();

/** Hue, saturation and difference in lightness of an owner. Red hues are left out: they show problems. */
export function colour(owner) {
  if (!owners.has(owner)) owners.set(owner, owners.size);
  const index = owners.get(owner);
  return [22 + ((0.53 + index * GOLDEN) % 1) * 308, 50 + (index % 3) * 11, ((index >> 1) % 3 - 1) * 6];
}

export class Model {
  constructor(map) {
    this.map = map;
    this.reservations = map.reservations;
    const each = (make) => ({ tcp: make(), udp: make() });
    // 0: none; else the index of the reservation and one.
    this.reserved = each(() => new Uint32Array(PORTS));
    this.waiting = each(() => new Uint32Array(PORTS));
    // The kind of socket with the largest index, and the group of sockets that it is in.
    this.used = each(() => new Uint8Array(PORTS));
    this.group = each(() => new Uint16Array(PORTS));
    this.reservations.forEach((reservation, index) => {
      const table = inForce(reservation) ? this.reserved : this.waiting;
      for (const transport of transportsOf(reservation)) {
        for (const [first, end] of blocksOf(reservation)) table[transport].fill(index + 1, first, end + 1);
      }
    });
    map.sockets.forEach((sockets, index) => {
      const rank = STATES.indexOf(sockets.state);
      const [used, group] = [this.used[sockets.transport], this.group[sockets.transport]];
      for (const [first, end] of spans(sockets.ports)) {
        for (let port = first; port <= end; port++) {
          if (used[port] <= rank) [used[port], group[port]] = [rank, index];
        }
      }
    });
  }

  /** The texts to search in, made when they are first searched. */
  get texts() {
    this.searched ??= this.reservations.map(searchText);
    return this.searched;
  }

  reservation(transport, port) {
    return this.reservations[this.reserved[transport][port] - 1] ?? null;
  }

  notInForce(transport, port) {
    return this.reservations[this.waiting[transport][port] - 1] ?? null;
  }

  /** State and user of the sockets of a port. */
  socket(transport, port) {
    const rank = this.used[transport][port];
    if (rank === 0) return null;
    const { user, uid } = this.map.sockets[this.group[transport][port]];
    return { state: STATES[rank], user: user ?? (uid === null ? null : `uid ${uid}`) };
  }

  /** One sentence for each fact about a port. */
  describe(transport, port) {
    const [reservation, waiting, socket] =
      [this.reservation(transport, port), this.notInForce(transport, port), this.socket(transport, port)];
    const lines = [];
    if (reservation) {
      const name = reservation.name ? `${reservation.name}: ` : '';
      lines.push(`${name}${reservation.ports}/${reservation.transports} for ${scopeText(reservation)}`);
      if (reservation.state === 'pending') lines.push('being checked by the agent');
      const origin = originText(reservation);
      if (origin) lines.push(reservation.owner ? `acquired by ${origin}` : `from ${origin}`);
    } else {
      lines.push('not reserved');
    }
    if (waiting) lines.push(`${waiting.name} is declared and not in force: ${waiting.reason ?? waiting.state}`);
    if (socket) lines.push(socket.user ? `${socket.state}, by user ${socket.user}` : socket.state);
    return [...lines, ...this.places(port)];
  }

  /** The ranges that a port is in. */
  places(port) {
    const { pool, local_port_range: range, local_reserved_ports: kept, unprivileged_port_start: start } = this.map;
    const inside = (text) => spans(text).some(([first, end]) => first <= port && port <= end);
    const places = [];
    if (inside(pool)) places.push('in the pool');
    if (inside(range)) places.push('in the ephemeral range');
    if (inside(kept)) places.push('in ip_local_reserved_ports');
    if (start !== null && port < start) places.push('privileged');
    return places;
  }

  /**
   * The result of a search: the port or range it names, the reservations it matches (all without a search), and whether sockets match.
   */
  find(query) {
    const text = query.trim().toLowerCase();
    if (!text) return { all: true, range: null, indexes: this.reservations.map((_, index) => index), users: [] };
    const number = /^(\d{1,5})(?:-(\d{1,5}))?(?:\/(tcp|udp))?$/.exec(text);
    if (number && +number[1] < PORTS && +(number[2] ?? 0) < PORTS) {
      const range = [+number[1], +(number[2] ?? number[1])];
      const hit = (reservation) => blocksOf(reservation).some(([first, end]) => first <= range[1] && range[0] <= end);
      const indexes = this.reservations.flatMap((reservation, index) => hit(reservation) ? [index] : []);
      return { all: false, range, transport: number[3] ?? null, indexes, users: [] };
    }
    const words = text.split(/\s+/);
    const indexes = this.texts.flatMap((have, index) => words.every((word) => have.includes(word)) ? [index] : []);
    const users = this.map.sockets.flatMap((sockets, index) => sockets.user?.toLowerCase() === text ? [index] : []);
    return { all: false, range: null, transport: null, indexes, users };
  }
}

function searchText(reservation) {
  const { name, description, owner, ports, transports, state, reason } = reservation;
  const parts = [name, description, ports, transports, state, reason, scopeText(reservation), originText(reservation),
    owner?.command, owner?.unit, owner?.user, reservation.ephemeral ? 'ephemeral' : ''];
  return parts.filter(Boolean).join(' ').toLowerCase();
}
