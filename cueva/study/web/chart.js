// Line charts as SVG. All charts share one horizontal axis: the same kind, range and crosshair.

const view = {
  axis: "step",
  log: false,
  range: null, // [from, to] in units of the axis, or null for everything
  charts: [],
  redraw() {
    for (const chart of this.charts) chart.render();
  },
  point(x, source) {
    for (const chart of this.charts) chart.mark(x, chart === source);
  },
};

const MARGIN = { left: 54, right: 14, top: 10, bottom: 26 };

/** Smallest and largest value of the axis over all that is drawn; positive ones only on a logarithmic axis. */
function axisExtent() {
  const values = [...(DATA.series[view.axis] || []), ...(DATA.evals[view.axis] || [])];
  const usable = values.filter((value) => known(value) && (!view.log || value > 0));
  if (!usable.length) return [1, 2];
  const low = usable.reduce((a, b) => Math.min(a, b));
  const high = usable.reduce((a, b) => Math.max(a, b));
  return low < high ? [low, high] : [low - (view.log ? low / 2 : 0.5), high + 0.5];
}

class Chart {
  /**
   * spec: title, unit, label(value) -> words, and curves: [{name, from: "series" | "evals", values, low, high, kind, color, quiet}].
   * kind: "faint" (each step, or the band of a point's steps), "line", "dots", "step" (a schedule). A quiet curve has no key.
   * Also: absent (the sentence when nothing is known), choice (offer a logarithmic scale), floor (a height always shown).
   */
  constructor(parent, spec) {
    this.spec = spec;
    this.curves = spec.curves.filter((curve) => curve.values.some(known));
    this.logY = false;
    this.at = null;
    this.root = make("figure.chart");
    parent.append(this.root);
    const title = make("figcaption", null, make("b", null, spec.title), " ", make("span.unit", null, spec.unit || ""));
    this.root.append(title);
    if (!this.curves.length) {
      this.root.append(empty(spec.absent));
      return;
    }
    if (spec.choice) title.append(this.logButton());
    this.legend = make("div.legend", { role: "group", "aria-label": `Curves of ${spec.title}` });
    this.plot = make("div.plot", {
      tabindex: 0,
      role: "slider",
      "aria-label": `${spec.title}: move along the axis with the arrow keys`,
      "aria-orientation": "horizontal",
    });
    this.tip = make("div.tip", { hidden: true, "aria-hidden": "true" });
    this.root.append(this.legend, this.plot);
    this.drawLegend();
    this.listen();
    view.charts.push(this);
    new ResizeObserver(() => this.render()).observe(this.plot);
  }

  logButton() {
    const button = make("button.small", { type: "button", "aria-pressed": this.logY }, "log scale");
    button.addEventListener("click", () => {
      this.logY = !this.logY;
      button.setAttribute("aria-pressed", this.logY);
      this.render();
    });
    return button;
  }

  // --- legend -------------------------------------------------------------------------------------------------------

  drawLegend() {
    const shown = this.curves.filter((curve) => !curve.quiet);
    if (this.curves.length === 1 && shown.length) {
      this.legend.append(make("span.note", null, "at the end ", make("b", null, this.spec.label(shown[0].values.filter(known).at(-1)))));
      return;
    }
    for (const curve of shown) {
      const last = curve.values.filter(known).at(-1);
      const swatch = draw("svg", { class: `swatch ${curve.kind}`, viewBox: "0 0 18 10", "aria-hidden": "true" });
      swatch.style.color = curve.color;
      swatch.append(curve.kind === "dots" ? draw("circle", { cx: 9, cy: 5, r: 3.2 }) : draw("path", { d: "M1 5H17" }));
      const button = make(
        "button.key",
        { type: "button", "aria-pressed": !curve.off },
        swatch,
        make("span", null, curve.name),
        curve.kind === "faint" ? null : make("span.last", null, this.spec.label(last)),
      );
      button.addEventListener("click", () => {
        curve.off = !curve.off;
        button.setAttribute("aria-pressed", !curve.off);
        this.render();
      });
      this.legend.append(button);
    }
    if (shown.length < this.curves.length) this.legend.append(make("span.note", null, this.spec.quiet));
  }

  // --- geometry -----------------------------------------------------------------------------------------------------

  xs(curve) {
    return DATA[curve.from][view.axis];
  }

  visible() {
    return this.curves.filter((curve) => !curve.off);
  }

  /**
   * The range of heights: all lines and dots, and all but the rarest outliers of what is drawn faintly.
   *
   * The steep fall of the first steps would press the rest of a curve flat. So where the axis is linear and whole, lines may
   * stick out at the top in the first 8% of it, if that doubles the room for the rest; the chart then says how far.
   */
  heights([from, to]) {
    const early = from + 0.08 * (to - from);
    const strong = [];
    const late = [];
    const faint = [];
    for (const curve of this.visible()) {
      const xs = this.xs(curve);
      for (let index = 0; index < xs.length; index++) {
        if (!known(xs[index]) || xs[index] < from || xs[index] > to) continue;
        const rows = curve.kind === "faint" && curve.low ? [curve.low, curve.high] : [curve.values];
        for (const row of rows) {
          const value = row[index];
          if (!known(value) || (this.logY && value <= 0)) continue;
          if (curve.kind === "faint") faint.push([value, DATA.series.steps[index]]); // a point may stand for many steps
          else strong.push(value);
          if (curve.kind !== "faint" && (xs[index] > early || curve.kind === "dots")) late.push(value);
        }
      }
    }
    if (!strong.length && !faint.length) return this.logY ? [0.1, 1] : [0, 1];
    faint.sort((a, b) => a[0] - b[0]);
    const most = [...strong, faint.at(-1)?.[0]].filter(known).reduce((a, b) => Math.max(a, b));
    let [low, high] = this.ends(strong, late);
    low = Math.min(...[low, quantile(faint, 0.005)].filter(known));
    high = Math.max(...[high, quantile(faint, strong.length ? 0.99 : 1)].filter(known));
    const range = this.roomy(low, high);
    this.beyond = most > range[1] ? most : null;
    return range;
  }

  /** Lowest and highest of the lines; without their beginning where it would take more than half of the height. */
  ends(strong, late) {
    if (!strong.length) return [undefined, undefined];
    const [low, high] = [strong.reduce((a, b) => Math.min(a, b)), strong.reduce((a, b) => Math.max(a, b))];
    if (view.log || view.range || this.logY || !late.length) return [low, high];
    const top = late.reduce((a, b) => Math.max(a, b));
    return top > low && high - low > 2 * (top - low) ? [low, top] : [low, high];
  }

  /** A range with some air around it; never below a floor, and never empty. */
  roomy(low, high) {
    if (this.spec.floor !== undefined && !this.logY) low = Math.min(low, this.spec.floor);
    if (low === high) {
      const room = Math.abs(low) * 0.1 || 1;
      return this.logY ? [low / 2, high * 2] : [low >= 0 ? Math.max(0, low - room) : low - room, high + room];
    }
    if (this.logY) return [low / 1.08, high * 1.08];
    const room = (high - low) * 0.06;
    return [low === this.spec.floor ? low : low >= 0 && low - room < 0 ? 0 : low - room, high + room];
  }

  render() {
    if (!this.plot) return;
    const width = Math.max(this.plot.clientWidth, 180);
    const height = this.spec.height || 220;
    const domain = view.range || axisExtent();
    const [low, high] = this.heights(domain);
    this.x = scale(domain[0], domain[1], MARGIN.left, width - MARGIN.right, view.log);
    this.y = scale(low, high, height - MARGIN.bottom, MARGIN.top, this.logY);
    this.size = { width, height, domain };
    const clip = `clip-${view.charts.indexOf(this)}`;
    const inner = width - MARGIN.left - MARGIN.right;
    const box = { x: MARGIN.left, y: MARGIN.top - 4, width: inner, height: height - MARGIN.top - MARGIN.bottom + 8 };
    this.layer = draw("g", { "clip-path": `url(#${clip})` });
    for (const curve of this.visible()) this.drawCurve(curve);
    this.cross = draw("g", { class: "cross" });
    const picture = draw(
      "svg",
      { width, height, viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": this.sentence() },
      draw("clipPath", { id: clip }, draw("rect", box)),
      ...this.axes(low, high),
      this.layer,
      this.cross,
    );
    this.plot.replaceChildren(picture, this.tip);
    this.tip.hidden = true;
    this.value();
  }

  axes(low, high) {
    const { width, height, domain } = this.size;
    const parts = [];
    for (const value of ticks(low, high, 4, this.logY, false)) {
      const y = this.y(value);
      parts.push(draw("line", { class: "grid", x1: MARGIN.left, x2: width - MARGIN.right, y1: y, y2: y }));
      parts.push(draw("text", { x: MARGIN.left - 8, y: y + 4, "text-anchor": "end" }, (this.spec.tick || words.short)(value)));
    }
    const label = axisWords[view.axis].tick;
    const base = height - MARGIN.bottom;
    parts.push(draw("line", { class: "axis", x1: MARGIN.left, x2: width - MARGIN.right, y1: base, y2: base }));
    const name = view.axis === "seconds" ? "" : axisWords[view.axis].name;
    parts.push(draw("text", { x: MARGIN.left - 8, y: height - 7, "text-anchor": "end" }, name));
    let free = MARGIN.left - 2;
    for (const value of ticks(domain[0], domain[1], (width - MARGIN.left) / 75, view.log, view.axis === "seconds")) {
      const x = this.x(value);
      const text = label(value);
      const half = text.length * 3.4;
      parts.push(draw("line", { class: "axis", x1: x, x2: x, y1: base, y2: base + 4 }));
      if (x - half < free) continue;
      const anchor = x + half > width ? "end" : "middle";
      parts.push(draw("text", { x: anchor === "end" ? width - 2 : x, y: height - 7, "text-anchor": anchor }, text));
      free = x + half + 8;
    }
    if (this.beyond) {
      const text = `▲ up to ${this.spec.label(this.beyond)}`;
      parts.push(draw("text", { class: "beyond", x: width - MARGIN.right, y: MARGIN.top + 4, "text-anchor": "end" }, text));
    }
    return parts;
  }

  // --- curves -------------------------------------------------------------------------------------------------------

  drawCurve(curve) {
    const group = draw("g", { class: `curve ${curve.kind}${curve.quiet ? " quiet" : ""}`, "data-name": curve.name });
    group.style.color = curve.color;
    const points = this.points(curve, curve.values);
    if (curve.kind === "faint" && curve.low) {
      group.append(draw("path", { class: "band", d: band(this.points(curve, curve.low), this.points(curve, curve.high)) }));
    } else {
      group.append(draw("path", { class: "stroke", d: path(points, curve.kind === "step") }));
    }
    const alone = points.filter(Boolean);
    if (alone.length === 1 || (curve.kind === "dots" && alone.length <= 80)) {
      const r = alone.length > 20 ? 2 : 3;
      for (const [x, y] of alone) group.append(draw("circle", { cx: x, cy: y, r }));
    }
    this.layer.append(group);
  }

  /** Pixels of a curve; null where it has no value. One point beyond either border is kept, so that lines run out of the frame. */
  points(curve, row) {
    const xs = this.xs(curve);
    const [from, to] = this.size.domain;
    const inside = xs.map((x) => known(x) && x >= from && x <= to);
    return row.map((value, index) => {
      if (!known(value) || !known(xs[index]) || (this.logY && value <= 0) || (view.log && xs[index] <= 0)) return null;
      if (!inside[index] && !inside[index - 1] && !inside[index + 1]) return null;
      return [round(this.x(xs[index])), round(this.y(value))];
    });
  }
}

/** Show only a part of the axis, in every chart; null shows everything. */
function zoom(range) {
  view.range = range && range[1] > range[0] ? range : null;
  document.dispatchEvent(new Event("zoomed"));
  view.redraw();
}

const round = (value) => Math.round(value * 10) / 10;

function path(points, stairs) {
  let pen = "M";
  let last = null;
  return points
    .map((point) => {
      if (!point) {
        pen = "M";
        return "";
      }
      const move = stairs && pen === "L" ? `H${point[0]}V${point[1]}` : `${pen}${point[0]} ${point[1]}`;
      last = point;
      pen = "L";
      return move;
    })
    .join("") || (last ? `M${last[0]} ${last[1]}` : "M0 0");
}

/** The area between two rows of points, one piece for each stretch without gaps. */
function band(low, high) {
  const pieces = [];
  let piece = [];
  for (let index = 0; index <= low.length; index++) {
    if (low[index] && high[index]) piece.push(index);
    else if (piece.length) {
      const there = piece.map((i) => `${high[i][0]} ${high[i][1]}`);
      const back = piece.map((i) => `${low[i][0]} ${low[i][1]}`).reverse();
      pieces.push(`M${[...there, ...back].join("L")}Z`);
      piece = [];
    }
  }
  return pieces.join("") || "M0 0";
}

/** A colour of the ramp from the first gate (0) to the last (1). */
function mixed(share) {
  const stops = ["--ramp-0", "--ramp-1", "--ramp-2", "--ramp-3"];
  const at = Math.min(share * (stops.length - 1), stops.length - 1.0001);
  const part = Math.round((at - Math.floor(at)) * 100);
  return `color-mix(in oklab, var(${stops[Math.floor(at) + 1]}) ${part}%, var(${stops[Math.floor(at)]}))`;
}
