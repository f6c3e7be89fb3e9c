// Load and bias of every expert over time: one card per gate, a heat map above and the bias paths below, on one time axis.
//
// Colour is the load relative to the mean of its gate, on a logarithmic scale from half to twice the mean.

const LOADS = DATA.loads;
const CARDS = 12; // gates on one screen
const FRAME = { left: 38, right: 8 };

function drawLoads(parent) {
  if (!LOADS) {
    parent.append(empty(DATA.absent.loads));
    return;
  }
  const ratio = unpack(LOADS.ratio, "uint16");
  const bias = LOADS.bias === null ? null : unpack(LOADS.bias, "int16");
  const cards = make("div.gates");
  const pages = Math.ceil(LOADS.gates.length / CARDS);
  parent.append(make("h3", null, "Load of each expert over time, and its bias"), heatKey());
  if (pages > 1) parent.append(pager(pages, (page) => show(page)));
  parent.append(cards);
  let shown = [];
  function show(page) {
    shown = LOADS.gates.slice(page * CARDS, (page + 1) * CARDS).map((_, i) => new GateCard(page * CARDS + i, ratio, bias));
    cards.replaceChildren(...shown.map((card) => card.root));
    for (const card of shown) card.render();
  }
  show(0);
  new ResizeObserver(() => shown.forEach((card) => card.render())).observe(cards);
  const again = () => shown.forEach((card) => card.render());
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", again);
  matchMedia("print").addEventListener("change", again);
}

function pager(pages, show) {
  const row = make("div.segments", { role: "group", "aria-label": "Which gates" });
  for (let page = 0; page < pages; page++) {
    const last = Math.min((page + 1) * CARDS, LOADS.gates.length) - 1;
    const name = `${LOADS.gates[page * CARDS]} – ${LOADS.gates[last]}`;
    const button = make("button", { type: "button", "aria-pressed": page === 0 }, name);
    button.addEventListener("click", () => {
      for (const other of row.children) other.setAttribute("aria-pressed", other === button);
      show(page);
    });
    row.append(button);
  }
  return row;
}

// --- colour -----------------------------------------------------------------------------------------------------------

function rgb(name) {
  return ink(name).split(/[ ,]+/).map(Number);
}

/** A function from load / mean to [r, g, b]; an expert without a single token has a colour of its own. */
function heatColours() {
  const stops = ["--heat-0", "--heat-1", "--heat-2", "--heat-3", "--heat-4"].map(rgb);
  const none = rgb("--heat-none");
  return (value) => {
    if (value === 0) return none;
    const at = Math.min(Math.max(2 * Math.log2(value) + 2, 0), 3.9999);
    const [a, b] = [stops[Math.floor(at)], stops[Math.floor(at) + 1]];
    return a.map((part, index) => Math.round(part + (b[index] - part) * (at - Math.floor(at))));
  };
}

function heatKey() {
  return make(
    "div.heat-key",
    { role: "img", "aria-label": "Colours run from blue, half the mean or less, over pale, the mean, to orange, twice the mean or more" },
    make("span", null, "load / mean"),
    make("span.none", null, "no token"),
    make("span.scale", null, make("i"), ...["≤ ½×", "0.7×", "1×", "1.4×", "≥ 2×"].map((text) => make("span", null, text))),
  );
}

// --- one gate ---------------------------------------------------------------------------------------------------------

class GateCard {
  constructor(gate, ratio, bias) {
    const cells = LOADS.step.length * LOADS.experts;
    this.name = LOADS.gates[gate];
    this.columns = LOADS.step.length;
    this.experts = LOADS.experts;
    this.ratio = ratio.slice(gate * cells, (gate + 1) * cells).map((value) => value / LOADS.ratio_unit);
    const unit = bias === null ? null : LOADS.bias_unit[gate];
    this.bias = unit === null ? null : bias.slice(gate * cells, (gate + 1) * cells).map((value) => value * unit);
    this.place = null; // [column, expert]
    this.canvas = make("canvas");
    this.marker = make("div.marker", { hidden: true });
    this.heat = make(
      "div.heat",
      { tabindex: 0, role: "application", "aria-label": this.title(), "aria-roledescription": "heat map" },
      this.canvas,
      this.marker,
    );
    this.paths = make("div.paths");
    this.said = make("p.said", { "aria-live": "polite" });
    this.root = make("figure.gate", null, make("figcaption", null, make("b", null, this.name)), this.heat, this.paths, this.said);
    this.listen();
  }

  at(column, expert) {
    return this.ratio[column * this.experts + expert];
  }

  title() {
    return `${this.name}: load of ${this.experts} experts at ${this.columns} times; move with the arrow keys`;
  }

  render() {
    this.width = this.heat.clientWidth;
    if (!this.width) return;
    this.inner = this.width - FRAME.left - FRAME.right;
    const row = Math.max(1, Math.min(10, Math.floor(150 / this.experts)));
    this.height = Math.max(96, row * this.experts);
    this.drawHeat();
    this.drawPaths();
    this.point(this.place);
  }

  drawHeat() {
    const colours = heatColours();
    const small = new ImageData(this.columns, this.experts);
    for (let column = 0; column < this.columns; column++) {
      for (let expert = 0; expert < this.experts; expert++) {
        small.data.set([...colours(this.at(column, expert)), 255], 4 * (expert * this.columns + column));
      }
    }
    const source = document.createElement("canvas");
    source.width = this.columns;
    source.height = this.experts;
    source.getContext("2d").putImageData(small, 0, 0);
    const dense = window.devicePixelRatio || 1;
    this.canvas.width = Math.round(this.width * dense);
    this.canvas.height = Math.round(this.height * dense);
    this.canvas.style.height = `${this.height}px`;
    const pen = this.canvas.getContext("2d");
    pen.scale(dense, dense);
    pen.imageSmoothingEnabled = false;
    pen.drawImage(source, FRAME.left, 0, this.inner, this.height);
    pen.fillStyle = ink("--muted");
    pen.font = `11px ${getComputedStyle(document.body).fontFamily}`;
    pen.textAlign = "right";
    pen.fillText("0", FRAME.left - 6, 10);
    pen.fillText(String(this.experts - 1), FRAME.left - 6, this.height - 2);
    pen.textAlign = "center";
    pen.translate(FRAME.left - 12, this.height / 2);
    pen.rotate(-Math.PI / 2);
    pen.fillText("expert", 0, 0);
  }

  drawPaths() {
    const [height, top, bottom] = this.bias ? [112, 8, 22] : [22, 0, 22];
    const right = this.width - FRAME.right;
    const parts = [];
    if (this.bias) {
      const low = this.bias.reduce((a, b) => Math.min(a, b), 0);
      const high = this.bias.reduce((a, b) => Math.max(a, b), 0);
      const still = low === high;
      this.y = scale(still ? -1 : low, still ? 1 : high, height - bottom, top, false);
      for (const value of still ? [0] : ticks(low, high, 3, false, false)) {
        const y = this.y(value);
        parts.push(draw("line", { class: value ? "grid" : "axis", x1: FRAME.left, x2: right, y1: y, y2: y }));
        parts.push(draw("text", { x: FRAME.left - 6, y: y + 4, "text-anchor": "end" }, words.short(value)));
      }
      for (let expert = 0; expert < this.experts; expert++) {
        const points = LOADS.step.map((_, column) => [this.middle(column), round(this.y(this.bias[column * this.experts + expert]))]);
        parts.push(draw("path", { class: "bias", d: path(points, false), "data-expert": expert }));
        if (points.length === 1) parts.push(draw("circle", { class: "bias", cx: points[0][0], cy: points[0][1], r: 2 }));
      }
      parts.push(draw("path", { class: "bias chosen", d: "M0 0" }));
      parts.push(draw("text", { class: "name", x: FRAME.left + 4, y: top + 8 }, "bias"));
    }
    const base = height - 6;
    parts.push(draw("text", { x: FRAME.left, y: base }, `step ${whole(LOADS.step[0])}`));
    if (this.columns > 1) parts.push(draw("text", { x: right, y: base, "text-anchor": "end" }, whole(LOADS.step.at(-1))));
    const label = this.bias ? `${this.name}: bias of each expert over time` : `${this.name}: time axis`;
    this.svg = draw("svg", { width: this.width, height, role: "img", "aria-label": label }, ...parts);
    this.paths.replaceChildren(this.svg);
  }

  middle(column) {
    return round(FRAME.left + ((column + 0.5) / this.columns) * this.inner);
  }

  /** Read one cell: say it, frame it, and raise its expert's bias path above the others. null: the summary of the end. */
  point(place) {
    this.place = place;
    const chosen = this.svg && this.svg.querySelector(".chosen");
    this.marker.hidden = !place;
    if (this.svg) this.svg.classList.toggle("reading", Boolean(place));
    if (!place) {
      if (chosen) chosen.setAttribute("d", "M0 0");
      this.said.textContent = this.ending();
      return;
    }
    const [column, expert] = place;
    if (chosen) chosen.setAttribute("d", this.svg.querySelector(`[data-expert="${expert}"]`).getAttribute("d"));
    const row = this.height / this.experts;
    const cell = this.inner / this.columns;
    this.marker.style.left = `${FRAME.left + column * cell}px`;
    this.marker.style.top = `${expert * row}px`;
    this.marker.style.width = `${Math.max(cell, 3)}px`;
    this.marker.style.height = `${Math.max(row, 3)}px`;
    const value = this.at(column, expert);
    const share = words.percent(value / this.experts);
    const bias = this.bias ? ` · bias ${words.short(this.bias[column * this.experts + expert])}` : "";
    this.said.textContent = `step ${whole(LOADS.step[column])} · expert ${expert}: ${value.toFixed(2)}× the mean (${share})${bias}`;
  }

  ending() {
    const last = Array.from({ length: this.experts }, (_, expert) => this.at(this.columns - 1, expert));
    const most = last.indexOf(Math.max(...last));
    const least = last.indexOf(Math.min(...last));
    const idle = last.filter((value) => value === 0).length;
    const rest = idle > 1 ? `${idle} experts got none` : `idlest ${least}, ${last[least].toFixed(2)}×`;
    return `at the end: busiest expert ${most}, ${last[most].toFixed(2)}× the mean; ${rest}`;
  }

  listen() {
    const column = (event) => {
      const x = event.clientX - this.heat.getBoundingClientRect().left - FRAME.left;
      return Math.min(Math.max(Math.floor((x / this.inner) * this.columns), 0), this.columns - 1);
    };
    this.heat.addEventListener("pointermove", (event) => {
      const y = event.clientY - this.heat.getBoundingClientRect().top;
      const expert = Math.min(Math.max(Math.floor((y / this.height) * this.experts), 0), this.experts - 1);
      this.point([column(event), expert]);
    });
    this.paths.addEventListener("pointermove", (event) => {
      if (!this.bias) return;
      const y = event.clientY - this.paths.getBoundingClientRect().top;
      const start = column(event) * this.experts;
      const row = this.bias.slice(start, start + this.experts);
      this.point([column(event), nearest(row, this.y.invert(y))]);
    });
    for (const part of [this.heat, this.paths]) part.addEventListener("pointerleave", () => this.point(null));
    this.heat.addEventListener("blur", () => this.point(null));
    this.heat.addEventListener("keydown", (event) => {
      const [x, y] = this.place || [this.columns - 1, 0];
      const moves = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
      if (!(event.key in moves)) return;
      const [dx, dy] = this.place ? moves[event.key] : [0, 0];
      const inside = (value, count) => Math.min(Math.max(value, 0), count - 1);
      this.point([inside(x + dx, this.columns), inside(y + dy, this.experts)]);
      event.preventDefault();
    });
  }
}
