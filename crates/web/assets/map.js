// The picture of all ports: 256 rows of 256 ports, TCP beside UDP. A range of ports is a band of rows.

import { BOUND, CONNECTED, PORTS, SOCKETS, TRANSPORTS, blocksOf, colour, inForce, ownerText, spans, transportsOf } from './model.js';

const SIDE = 256;
// Widths in CSS pixels.
const AXIS = 46;
const TITLE = 22;
const GAP = 18;
const NARROW = 600;
const MOST_ZOOM = 64;
const FLASH = 2200;
// Single ports that get a mark of some pixels.
const SMALL = 2000;
const quiet = matchMedia('(prefers-reduced-motion: reduce)');

function hslToRgb(hue, saturation, lightness) {
  const [s, l] = [saturation / 100, lightness / 100];
  const part = (n) => {
    const k = (n + hue / 30) % 12;
    return Math.round(255 * (l - s * Math.min(l, 1 - l) * Math.max(-1, Math.min(k - 3, 9 - k, 1))));
  };
  return [part(0), part(8), part(4)];
}

const hexToRgb = (text) => {
  const digits = text.trim().slice(1);
  const full = digits.length === 3 ? [...digits].map((digit) => digit + digit).join('') : digits;
  return [0, 2, 4].map((at) => parseInt(full.slice(at, at + 2), 16));
};

const mix = (one, other, part) => one.map((value, index) => Math.round(value * (1 - part) + other[index] * part));

export class PortMap {
  /** `show` gets {transport, port} or null on hover, `open` on a click, `moved` when the view has changed. */
  constructor(canvas, { show, open, moved }) {
    Object.assign(this, { canvas, show, open, moved });
    this.context = canvas.getContext('2d');
    this.view = { x: 0, y: 0, zoom: 1 };
    this.model = null;
    this.found = null;
    this.hover = null;
    this.cursor = null;
    this.flashes = [];
    this.lists = {};
    this.panels = [];
    this.base = Object.fromEntries(TRANSPORTS.map((transport) => {
      const image = document.createElement('canvas');
      image.width = image.height = SIDE;
      return [transport, image];
    }));
    this.readColours();
    matchMedia('(prefers-color-scheme: dark)').addEventListener('change', () => {
      this.readColours();
      this.paint();
    });
    new ResizeObserver(() => this.resize()).observe(canvas.parentElement);
    this.listen();
    this.resize();
  }

  readColours() {
    const style = getComputedStyle(document.documentElement);
    const names = ['free', 'privileged', 'range-tint', 'pool-tint', 'gridline', 'listening', 'connected', 'waiting',
      'conflict', 'refused', 'pool', 'range', 'private', 'sysctl', 'select', 'quiet', 'text', 'card'];
    this.css = Object.fromEntries(names.map((name) => [name, style.getPropertyValue(`--${name}`).trim()]));
    this.rgb = Object.fromEntries(names.map((name) => [name, hexToRgb(this.css[name])]));
    this.lightness = +style.getPropertyValue('--lightness');
  }

  ownerRgb(reservation) {
    const [hue, saturation, lighter] = colour(ownerText(reservation));
    return hslToRgb(hue, saturation, this.lightness + lighter);
  }

  /** New data, or a new search. Ports that the search has not found are pale. */
  set(model, found) {
    Object.assign(this, { model, found });
    this.paint();
  }

  /** A bind was refused there. */
  flash(transport, port) {
    this.flashes = this.flashes.filter((flash) => flash.transport !== transport || flash.port !== port);
    this.flashes.push({ transport, port, begin: performance.now() });
    this.draw();
  }

  // -- Places.

  resize() {
    const width = Math.max(240, Math.floor(this.canvas.parentElement.clientWidth));
    const beside = width >= NARROW;
    const side = Math.floor(beside ? (width - 2 * AXIS - GAP) / 2 : width - AXIS) - 1;
    const height = beside ? TITLE + side + 2 : 2 * (TITLE + side) + GAP + 2;
    this.panels = TRANSPORTS.map((transport, index) => ({
      transport,
      left: beside ? AXIS + index * (side + GAP + AXIS) : AXIS,
      top: TITLE + (beside ? 0 : index * (side + TITLE + GAP)),
      side,
    }));
    const scale = window.devicePixelRatio || 1;
    Object.assign(this, { width, height, scale });
    this.canvas.style.height = `${height}px`;
    this.canvas.width = Math.round(width * scale);
    this.canvas.height = Math.round(height * scale);
    this.draw();
  }

  /** Pixels of a port. */
  cell() {
    return this.panels[0].side / SIDE * this.view.zoom;
  }

  at(x, y) {
    for (const { transport, left, top, side } of this.panels) {
      if (x < left || y < top || x >= left + side || y >= top + side) continue;
      const [column, row] = [Math.floor(this.view.x + (x - left) / this.cell()), Math.floor(this.view.y + (y - top) / this.cell())];
      const port = row * SIDE + column;
      return port > 0 && port < PORTS ? { transport, port } : null;
    }
    return null;
  }

  /** The middle of a port in the canvas, CSS pixels. */
  position(transport, port) {
    const { left, top } = this.panels.find((panel) => panel.transport === transport);
    const cell = this.cell();
    return {
      x: left + ((port % SIDE) - this.view.x + 0.5) * cell,
      y: top + (Math.floor(port / SIDE) - this.view.y + 0.5) * cell,
    };
  }

  look(x, y, zoom) {
    zoom = Math.min(MOST_ZOOM, Math.max(1, zoom));
    const room = SIDE - SIDE / zoom;
    this.view = { x: Math.min(room, Math.max(0, x)), y: Math.min(room, Math.max(0, y)), zoom };
    this.canvas.style.touchAction = zoom > 1 ? 'none' : 'pan-y';
    this.draw();
    this.moved(this.view);
  }

  /** Zoom by a factor and keep what is at (x, y) there; without a place, what is in the middle. */
  zoom(factor, x, y) {
    const panel = this.panels.find(({ left, top, side }) => x >= left && x < left + side && y >= top && y < top + side);
    const side = this.panels[0].side;
    const [dx, dy] = panel ? [x - panel.left, y - panel.top] : [side / 2, side / 2];
    const before = this.cell();
    const zoom = Math.min(MOST_ZOOM, Math.max(1, this.view.zoom * factor));
    const after = side / SIDE * zoom;
    this.look(this.view.x + dx / before - dx / after, this.view.y + dy / before - dy / after, zoom);
  }

  reset() {
    this.look(0, 0, 1);
  }

  /** Bring ports into sight, so large that they can be distinguished. */
  reveal(first, end = first) {
    const rows = Math.floor(end / SIDE) - Math.floor(first / SIDE) + 1;
    const zoom = rows > 1 ? Math.min(12, SIDE / (rows + 6)) : Math.min(12, SIDE / (end - first + 12));
    const middle = Math.floor((first + end) / 2);
    const column = rows > 1 ? SIDE / 2 : (first % SIDE + end % SIDE) / 2;
    this.look(column - SIDE / zoom / 2, middle / SIDE - SIDE / zoom / 2, zoom);
  }

  select(place) {
    this.cursor = place;
    this.draw();
  }

  // -- Painting: a pixel for each port.

  paint() {
    if (!this.model) return;
    const { model, rgb } = this;
    const { pool, local_port_range: range, unprivileged_port_start: start } = model.map;
    const ground = new Uint8Array(PORTS);
    spans(range).forEach(([first, end]) => ground.fill(1, first, end + 1));
    spans(pool).forEach(([first, end]) => ground.fill(2, first, end + 1));
    ground.fill(3, 0, start ?? 0);
    const grounds = [rgb.free, rgb['range-tint'], rgb['pool-tint'], rgb.privileged];
    // Shades are made once, not for each port: those of an owner alternate from block to block, and are darker in use.
    const shades = model.reservations.map((reservation, index) => {
      const shade = mix(this.ownerRgb(reservation), rgb.card, index % 2 ? 0 : 0.12);
      return [shade, mix(shade, rgb.listening, 0.45)];
    });
    const lonely = [null, ...SOCKETS.map((rank) => rank >= BOUND ? rgb.listening : rank === CONNECTED ? rgb.connected : null)];
    const match = this.found && !this.found.all ? this.found : null;
    const matching = match && new Set(match.indexes.map((index) => index + 1));
    const users = match && new Set(match.users);
    const packed = new Map();
    const pack = (shade) => {
      let pixel = packed.get(shade);
      if (pixel === undefined) {
        // Little-endian, like every machine that runs a browser.
        pixel = (255 << 24 | shade[2] << 16 | shade[1] << 8 | shade[0]) >>> 0;
        packed.set(shade, pixel);
      }
      return pixel;
    };
    const halves = grounds.map((ground) => mix(rgb.connected, ground, 0.5));
    const hatched = { waiting: grounds.map((ground) => mix(rgb.waiting, ground, 0.5)), conflict: grounds.map((ground) => mix(rgb.conflict, ground, 0.5)) };
    const pales = new Map();
    const pale = (shade, ground) => {
      const key = pack(shade) * 4 + ground;
      if (!pales.has(key)) pales.set(key, mix(shade, grounds[ground], 0.85));
      return pales.get(key);
    };
    for (const transport of TRANSPORTS) {
      const context = this.base[transport].getContext('2d');
      const image = context.createImageData(SIDE, SIDE);
      const pixels = new Uint32Array(image.data.buffer);
      const [reserved, waiting, used, group] =
        [model.reserved[transport], model.waiting[transport], model.used[transport], model.group[transport]];
      for (let port = 1; port < PORTS; port++) {
        const [owner, rank, under] = [reserved[port], used[port], ground[port]];
        let shade = grounds[under];
        if (owner) {
          shade = shades[owner - 1][rank >= CONNECTED ? 1 : 0];
        } else if (waiting[port]) {
          const kind = model.reservations[waiting[port] - 1].state === 'conflict' ? 'conflict' : 'waiting';
          shade = (port + (port >> 8)) & 1 ? rank ? rgb.listening : hatched[kind][under] : rgb[kind];
        } else if (rank) {
          shade = lonely[rank] ?? halves[under];
        }
        if (match) {
          const hit = matching.has(owner) || matching.has(waiting[port]) || (rank > 0 && users.has(group[port]))
            || (match.range && match.range[0] <= port && port <= match.range[1] && (!match.transport || match.transport === transport));
          if (!hit) shade = pale(shade, under);
        }
        pixels[port] = pack(shade);
      }
      context.putImageData(image, 0, 0);
      this.lists[transport] = this.list(transport, match);
    }
    this.draw();
  }

  /** All that is drawn over the pixels in each frame, of one transport. */
  list(transport, match) {
    const { model } = this;
    const its = model.reservations.filter((each) => transportsOf(each).includes(transport));
    const isPrivate = (each) => each.ephemeral && inForce(each);
    const shown = match ? match.indexes.map((index) => model.reservations[index]) : its;
    // Reservations in force come last, over the others.
    const small = shown.filter((each) => transportsOf(each).includes(transport)).sort((one, other) => inForce(one) - inForce(other))
      .flatMap((each) => blocksOf(each).map(([first, end]) => ({ each, first, count: end - first + 1 }))).filter(({ count }) => count < 8);
    const [used, reserved, waiting] = [model.used[transport], model.reserved[transport], model.waiting[transport]];
    const bound = [];
    for (let port = 1; port < PORTS && bound.length <= SMALL && !match; port++) {
      if (used[port] >= BOUND && !reserved[port] && !waiting[port]) bound.push(port);
    }
    return {
      blocks: its.filter((each) => !isPrivate(each)).flatMap(blocksOf),
      privates: its.filter(isPrivate).flatMap(blocksOf),
      // Too many would hide the rest.
      small: small.length <= SMALL ? small : [],
      bound: bound.length <= SMALL ? bound : [],
    };
  }

  draw() {
    if (this.frame) return;
    this.frame = requestAnimationFrame(() => {
      this.frame = 0;
      this.drawNow();
    });
  }

  drawNow() {
    const { context, scale, width, height } = this;
    context.setTransform(scale, 0, 0, scale, 0, 0);
    context.clearRect(0, 0, width, height);
    context.imageSmoothingEnabled = false;
    context.lineJoin = 'miter';
    this.panels.forEach((panel) => this.drawPanel(panel));
    const now = performance.now();
    this.flashes = this.flashes.filter((flash) => now - flash.begin < FLASH);
    if (this.flashes.length > 0) this.draw();
  }

  drawPanel(panel) {
    const { context, css, view } = this;
    const { transport, left, top, side } = panel;
    const cell = this.cell();
    context.font = '600 12px system-ui, sans-serif';
    context.fillStyle = css.text;
    context.textAlign = 'left';
    context.textBaseline = 'alphabetic';
    context.fillText(transport.toUpperCase(), left, top - 7);
    this.drawAxis(panel, cell);
    context.save();
    context.beginPath();
    context.rect(left, top, side, side);
    context.clip();
    context.fillStyle = css.free;
    context.fillRect(left, top, side, side);
    context.drawImage(this.base[transport], view.x, view.y, SIDE / view.zoom, SIDE / view.zoom, left, top, side, side);
    if (this.model) {
      if (cell >= 7) this.drawGrid(panel, cell);
      this.drawRanges(panel, cell);
      if (cell >= 5) this.drawPorts(panel, cell);
      else this.drawSmall(panel, cell);
    }
    this.drawPlaces(panel, cell);
    context.restore();
    context.strokeStyle = css.gridline;
    context.lineWidth = 1;
    context.strokeRect(left - 0.5, top - 0.5, side + 1, side + 1);
  }

  drawAxis({ left, top, side }, cell) {
    const { context, css, view } = this;
    const step = [1, 2, 4, 8, 16, 32].find((rows) => rows * cell >= 26) ?? 32;
    context.font = '11px system-ui, sans-serif';
    context.fillStyle = css.quiet;
    context.textAlign = 'right';
    context.textBaseline = 'middle';
    for (let row = Math.ceil(view.y / step) * step; row < SIDE; row += step) {
      const y = top + (row - view.y) * cell;
      if (y > top + side - 6) break;
      // Without zoom a label belongs to the line at the upper edge of its row.
      const middle = Math.max(top + 5, cell > 12 ? y + cell / 2 : y);
      context.fillText(String(row * SIDE + Math.floor(view.x)), left - 6, middle);
    }
  }

  visible(cell, side) {
    const { view } = this;
    const many = Math.ceil(side / cell) + 1;
    const [column, row] = [Math.floor(view.x), Math.floor(view.y)];
    return { column, row, columns: Math.min(SIDE, column + many), rows: Math.min(SIDE, row + many) };
  }

  drawGrid({ left, top, side }, cell) {
    const { context, css, view } = this;
    context.strokeStyle = css.card;
    context.lineWidth = cell > 16 ? 1.5 : 0.75;
    context.beginPath();
    for (let line = Math.floor(view.x); line <= view.x + SIDE / view.zoom + 1; line++) {
      const x = left + (line - view.x) * cell;
      context.moveTo(x, top);
      context.lineTo(x, top + side);
    }
    for (let line = Math.floor(view.y); line <= view.y + SIDE / view.zoom + 1; line++) {
      const y = top + (line - view.y) * cell;
      context.moveTo(left, y);
      context.lineTo(left + side, y);
    }
    context.stroke();
  }

  /** The outline of a range: a rectangle, or one with steps. */
  outline({ left, top }, cell, first, end, inset = 0) {
    const { context, view } = this;
    const x = (column) => left + (column - view.x) * cell;
    const y = (row) => top + (row - view.y) * cell;
    const [r0, c0, r1, c1] = [first >> 8, first & 255, end >> 8, (end & 255) + 1];
    const box = (ca, ra, cb, rb) => context.rect(x(ca) + inset, y(ra) + inset, x(cb) - x(ca) - 2 * inset, y(rb) - y(ra) - 2 * inset);
    if (r0 === r1) return box(c0, r0, c1, r0 + 1);
    if (c0 === 0 && c1 === SIDE) return box(0, r0, SIDE, r1 + 1);
    if (r1 === r0 + 1 && c1 <= c0) {
      box(c0, r0, SIDE, r0 + 1);
      return box(0, r1, c1, r1 + 1);
    }
    const corners = [[c0, r0], [SIDE, r0], [SIDE, r1], [c1, r1], [c1, r1 + 1], [0, r1 + 1], [0, r0 + 1], [c0, r0 + 1]];
    const inner = [[1, 1], [-1, 1], [-1, -1], [-1, -1], [-1, -1], [1, -1], [1, 1], [1, 1]];
    corners.forEach(([column, row], index) => {
      const [px, py] = [x(column) + inner[index][0] * inset, y(row) + inner[index][1] * inset];
      if (index === 0) context.moveTo(px, py);
      else context.lineTo(px, py);
    });
    context.closePath();
  }

  strokeRanges(panel, cell, ranges, style, width, dash = []) {
    const { context } = this;
    context.beginPath();
    for (const [first, end] of ranges) this.outline(panel, cell, first, end, width / 2);
    context.strokeStyle = style;
    context.lineWidth = width;
    context.setLineDash(dash);
    context.stroke();
    context.setLineDash([]);
  }

  drawRanges(panel, cell) {
    const { css, model, view } = this;
    const { map } = model;
    const [top, bottom] = [Math.floor(view.y) * SIDE, Math.ceil(view.y + SIDE / view.zoom) * SIDE];
    const shown = ([first, end]) => end >= top && first <= bottom;
    this.strokeRanges(panel, cell, spans(map.local_port_range), css.range, 2);
    this.strokeRanges(panel, cell, spans(map.pool), css.pool, 2);
    const kept = spans(map.local_reserved_ports).filter(shown);
    if (cell >= 3 || kept.length < 200) this.strokeRanges(panel, cell, kept, css.sysctl, 1.25, [2, 2.5]);
    const { blocks, privates } = this.lists[panel.transport];
    if (cell >= 5) this.strokeRanges(panel, cell, blocks.filter(shown), css.text, 1);
    this.strokeRanges(panel, cell, privates.filter(shown), css.private, 2);
  }

  /** Single ports would be too small to see: they get some pixels, unless they are too many. */
  drawSmall({ transport, left, top }, cell) {
    const { context, css, view } = this;
    const mark = (port, count, size, style) => {
      const [x, y] = [left + ((port % SIDE) - view.x + count / 2) * cell, top + ((port >> 8) - view.y + 0.5) * cell];
      context.fillStyle = style;
      context.fillRect(Math.round(x - size / 2), Math.round(y - size / 2), size, size);
    };
    const { small, bound } = this.lists[transport];
    for (const { each, first, count } of small.filter(({ count }) => count * cell < 6)) {
      const wrong = each.state === 'conflict' ? css.conflict : css.waiting;
      mark(first, count, 7, css.card);
      mark(first, count, 5, inForce(each) ? `rgb(${this.ownerRgb(each)})` : wrong);
    }
    bound.forEach((port) => mark(port, 1, 3, css.listening));
  }

  /** Marks of sockets, and numbers where there is room for them. */
  drawPorts({ transport, left, top, side }, cell) {
    const { context, css, model, view } = this;
    const [used, reserved] = [model.used[transport], model.reserved[transport]];
    const { column, row, columns, rows } = this.visible(cell, side);
    const dot = Math.max(2, cell * 0.34);
    context.textAlign = 'center';
    context.textBaseline = 'alphabetic';
    context.font = `${Math.min(12, cell / 3.4)}px system-ui, sans-serif`;
    for (let r = row; r < rows; r++) {
      for (let c = column; c < columns; c++) {
        const port = r * SIDE + c;
        const [x, y] = [left + (c - view.x) * cell, top + (r - view.y) * cell];
        if (used[port] && reserved[port]) {
          context.fillStyle = used[port] >= BOUND ? css.listening : css.connected;
          context.fillRect(x + (cell - dot) / 2, y + (cell - dot) / 2, dot, dot);
        }
        if (cell >= 30 && port > 0) {
          const dark = used[port] >= BOUND && !reserved[port];
          context.fillStyle = dark ? css.card : css.text;
          context.fillText(String(port), x + cell / 2, y + cell - 3);
        }
      }
    }
  }

  /** Hover, cursor, refusals. */
  drawPlaces({ transport, left, top }, cell) {
    const { context, css, view } = this;
    const box = (port, style, width) => {
      const size = Math.max(cell, 5);
      const [x, y] = [left + ((port % SIDE) - view.x + 0.5) * cell, top + ((port >> 8) - view.y + 0.5) * cell];
      context.strokeStyle = css.card;
      context.lineWidth = width + 2;
      context.strokeRect(x - size / 2 - 1, y - size / 2 - 1, size + 2, size + 2);
      context.strokeStyle = style;
      context.lineWidth = width;
      context.strokeRect(x - size / 2 - 1, y - size / 2 - 1, size + 2, size + 2);
    };
    if (this.cursor?.transport === transport) box(this.cursor.port, css.select, 2);
    if (this.hover?.transport === transport) box(this.hover.port, css.select, 1.5);
    const now = performance.now();
    for (const flash of this.flashes.filter((each) => each.transport === transport)) {
      const part = (now - flash.begin) / FLASH;
      const [x, y] = [left + ((flash.port % SIDE) - view.x + 0.5) * cell, top + ((flash.port >> 8) - view.y + 0.5) * cell];
      const rings = quiet.matches ? [0.5] : [part * 3 % 1, (part * 3 + 0.5) % 1];
      context.globalAlpha = quiet.matches ? 1 : Math.max(0, 1 - part * 0.7);
      context.fillStyle = context.strokeStyle = css.refused;
      context.fillRect(x - Math.max(cell, 5) / 2, y - Math.max(cell, 5) / 2, Math.max(cell, 5), Math.max(cell, 5));
      context.lineWidth = 2.5;
      for (const ring of rings) {
        context.beginPath();
        context.arc(x, y, Math.max(cell, 6) * 0.7 + ring * 18, 0, 2 * Math.PI);
        context.stroke();
      }
      context.globalAlpha = 1;
    }
  }

  // -- Pointer and keys.

  listen() {
    const { canvas } = this;
    const pointers = new Map();
    let moved = 0;
    let spread = 0;
    const place = (event) => {
      const box = canvas.getBoundingClientRect();
      return { x: event.clientX - box.left, y: event.clientY - box.top };
    };
    const distance = () => {
      const [one, other] = [...pointers.values()];
      return Math.hypot(one.x - other.x, one.y - other.y);
    };
    const point = (hover, event) => {
      if (hover?.port === this.hover?.port && hover?.transport === this.hover?.transport) return;
      this.hover = hover;
      this.show(hover, event && place(event));
      this.draw();
    };
    canvas.addEventListener('pointerdown', (event) => {
      canvas.setPointerCapture(event.pointerId);
      pointers.set(event.pointerId, place(event));
      if (pointers.size === 1) moved = 0;
      if (pointers.size === 2) spread = distance();
    });
    canvas.addEventListener('pointermove', (event) => {
      const [now, before] = [place(event), pointers.get(event.pointerId)];
      if (!before) return point(this.at(now.x, now.y), event);
      pointers.set(event.pointerId, now);
      if (pointers.size === 2) {
        const wide = distance();
        const [one, other] = [...pointers.values()];
        this.zoom(wide / spread, (one.x + other.x) / 2, (one.y + other.y) / 2);
        [spread, moved] = [wide, 99];
        return;
      }
      moved += Math.hypot(now.x - before.x, now.y - before.y);
      if (moved > 4 && this.view.zoom > 1) {
        point(null);
        this.look(this.view.x - (now.x - before.x) / this.cell(), this.view.y - (now.y - before.y) / this.cell(), this.view.zoom);
      }
    });
    canvas.addEventListener('pointerup', (event) => {
      pointers.delete(event.pointerId);
      const now = place(event);
      const hit = this.at(now.x, now.y);
      if (moved <= 4 && hit) {
        this.select(hit);
        this.open(hit);
      }
    });
    canvas.addEventListener('pointercancel', (event) => pointers.delete(event.pointerId));
    canvas.addEventListener('pointerleave', () => point(null));
    canvas.addEventListener('wheel', (event) => {
      // The page scrolls, unless the map has the focus or the user zooms.
      if (!event.ctrlKey && !event.metaKey && document.activeElement !== canvas) return;
      event.preventDefault();
      const { x, y } = place(event);
      this.zoom(Math.exp(-event.deltaY / 300), x, y);
      point(this.at(x, y), event);
    }, { passive: false });
    canvas.addEventListener('dblclick', (event) => {
      const { x, y } = place(event);
      this.zoom(4, x, y);
    });
    canvas.addEventListener('keydown', (event) => this.key(event));
    canvas.addEventListener('blur', () => point(null));
    canvas.positionOf = (transport, port) => this.position(transport, port);
  }

  key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const step = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -SIDE, ArrowDown: SIDE, PageUp: -16 * SIDE, PageDown: 16 * SIDE }[event.key];
    const now = this.cursor ?? { transport: 'tcp', port: 1 };
    const go = (port, transport = now.transport) => {
      this.cursor = { transport, port: Math.min(PORTS - 1, Math.max(1, port)) };
      this.keepInSight(this.cursor.port);
      this.show(this.cursor, this.position(transport, this.cursor.port), true);
      this.draw();
    };
    if (step) go(now.port + step);
    else if (event.key === 'Home') go(1);
    else if (event.key === 'End') go(PORTS - 1);
    else if (event.key === 't' || event.key === 'T') go(now.port, now.transport === 'tcp' ? 'udp' : 'tcp');
    else if (event.key === 'n' || event.key === 'N') go(this.neighbour(now, 1));
    else if (event.key === 'p' || event.key === 'P') go(this.neighbour(now, -1));
    else if (event.key === 'Enter' || event.key === ' ') this.open(now);
    else if (event.key === '+' || event.key === '=') this.zoomAtCursor(2);
    else if (event.key === '-') this.zoomAtCursor(0.5);
    else if (event.key === '0') this.reset();
    else if (event.key === 'Escape') this.show(null);
    else return;
    event.preventDefault();
  }

  zoomAtCursor(factor) {
    const place = this.cursor && this.position(this.cursor.transport, this.cursor.port);
    this.zoom(factor, place?.x, place?.y);
  }

  keepInSight(port) {
    const { x, y, zoom } = this.view;
    const [column, row, seen] = [port % SIDE, port >> 8, SIDE / zoom];
    if (column < x || row < y || column + 1 > x + seen || row + 1 > y + seen) {
      this.look(column - seen / 2, row - seen / 2, zoom);
    }
  }

  /** The first port of the next block of a reservation, or of the one before. */
  neighbour({ transport, port }, direction) {
    const starts = (this.model?.reservations ?? []).filter((each) => transportsOf(each).includes(transport)).flatMap((each) => blocksOf(each).map(([first]) => first));
    const beyond = starts.filter((start) => (start - port) * direction > 0);
    if (beyond.length === 0) return port;
    return beyond.reduce((best, start) => (start - best) * direction < 0 ? start : best);
  }
}
