// Reading a chart: the crosshair, its numbers, and the same by keyboard.
//
// The crosshair stands at one point of the axis in all charts at once; only the chart under the pointer (or with the focus)
// shows numbers. Dragging, or + and -, shows a part of the axis; a double click, or Escape, everything again.

Object.assign(Chart.prototype, {
  // --- reading ------------------------------------------------------------------------------------------------------

  sentence() {
    const parts = this.visible()
      .filter((curve) => curve.kind !== "faint" && !curve.quiet)
      .map((curve) => {
        const values = curve.values.filter(known);
        return `${curve.name} from ${this.spec.label(values[0])} to ${this.spec.label(values.at(-1))}`;
      });
    return `${this.spec.title}, a line chart: ${parts.join("; ")}.`;
  },

  /** The axis that the crosshair runs along: the step records, or the held-out ones when there is nothing else. */
  track() {
    return DATA.series[view.axis].some(known) ? DATA.series : DATA.evals;
  },

  /** Put the crosshair at the axis value x (null: away); the chart under the pointer also shows the numbers. */
  mark(x, active) {
    if (!this.x) return;
    this.cross.replaceChildren();
    this.tip.hidden = true;
    this.at = null;
    if (x === null) return;
    const [from, to] = this.size.domain;
    if (x < from || x > to) return;
    const index = nearest(this.track()[view.axis], x);
    if (index < 0) return;
    this.at = index;
    const place = this.x(x);
    this.cross.append(draw("line", { x1: place, x2: place, y1: MARGIN.top, y2: this.size.height - MARGIN.bottom }));
    for (const reading of this.readings(x)) {
      if (reading.curve.kind === "faint" || reading.curve.quiet || !known(reading.value)) continue;
      if (this.logY && reading.value <= 0) continue;
      const dot = draw("circle", { cx: this.x(reading.x), cy: this.y(reading.value), r: 3.5 });
      dot.style.color = reading.curve.color;
      this.cross.append(dot);
    }
    if (active) this.showTip(x, place);
    this.value();
  },

  /** What each visible curve says at x; held-out curves say their latest measurement. */
  readings(x) {
    return this.visible().map((curve) => {
      const xs = this.xs(curve);
      let index = nearest(xs, x);
      if (curve.from === "evals") {
        index = -1;
        for (let i = 0; i < xs.length; i++) if (known(xs[i]) && xs[i] <= x && known(curve.values[i])) index = i;
      }
      return { curve, index, x: xs[index], value: index < 0 ? null : curve.values[index] };
    });
  },

  showTip(x, place) {
    const index = this.at;
    const track = this.track();
    const others = ["step", "tokens", "seconds"].filter((axis) => axis !== view.axis && known(track[axis][index]));
    const merged = track.steps ? track.steps[index] : 1;
    const head = axisWords[view.axis].full(x) + (merged > 1 ? ` (a mean of ${whole(merged)} steps)` : "");
    const rows = this.readings(x).filter((reading) => known(reading.value));
    const loud = rows.filter((reading) => !reading.curve.quiet);
    const quiet = rows.filter((reading) => reading.curve.quiet).sort((a, b) => b.value - a.value);
    const most = 6;
    this.tip.replaceChildren(
      make("b", null, head),
      make("div.where", null, others.map((axis) => axisWords[axis].full(track[axis][index])).join(" · ")),
      make("table", null, ...[...loud, ...quiet.slice(0, most)].map((reading) => this.tipRow(reading, x))),
    );
    if (quiet.length > most) this.tip.append(make("div.where", null, `and ${quiet.length - most} gates below`));
    this.tip.hidden = false;
    const space = this.size.width - this.tip.offsetWidth - 4;
    const left = place > this.size.width / 2 ? place - this.tip.offsetWidth - 12 : place + 12;
    this.tip.style.left = `${Math.max(4, Math.min(left, space))}px`;
    this.tip.style.top = `${MARGIN.top}px`;
  },

  tipRow({ curve, index, x, value }, at) {
    const swatch = make("i.dot");
    swatch.style.background = curve.color;
    let note = "";
    if (curve.low && known(curve.low[index]) && curve.low[index] !== curve.high[index]) {
      note = `${this.spec.label(curve.low[index])} – ${this.spec.label(curve.high[index])}`;
    } else if (curve.from === "evals" && x !== at) {
      note = `at ${axisWords[view.axis].full(x)}`;
    }
    return make(
      "tr",
      null,
      make("td", null, swatch, curve.name),
      make("td.number", null, this.spec.label(value)),
      make("td.where", null, note),
    );
  },

  value() {
    const list = this.track()[view.axis];
    const index = this.at === null ? list.length - 1 : this.at;
    this.plot.setAttribute("aria-valuemin", 0);
    this.plot.setAttribute("aria-valuemax", Math.max(list.length - 1, 0));
    this.plot.setAttribute("aria-valuenow", Math.max(index, 0));
    if (!known(list[index])) return;
    const said = this.readings(list[index])
      .filter((reading) => known(reading.value) && !reading.curve.quiet)
      .map((reading) => `${reading.curve.name} ${this.spec.label(reading.value)}`);
    this.plot.setAttribute("aria-valuetext", `${axisWords[view.axis].full(list[index])}: ${said.join(", ")}`);
  },

  // --- pointer and keys ---------------------------------------------------------------------------------------------

  listen() {
    const plot = this.plot;
    let start = null;
    const where = (event) => event.clientX - plot.getBoundingClientRect().left;
    const inside = (pixel) => Math.min(Math.max(pixel, MARGIN.left), this.size.width - MARGIN.right);
    plot.addEventListener("pointermove", (event) => {
      const list = this.track()[view.axis];
      const index = nearest(list, this.x.invert(inside(where(event))));
      if (index >= 0) view.point(list[index], this);
      if (start === null || Math.abs(where(event) - start) < 6) return;
      const [a, b] = [start, inside(where(event))].sort((p, q) => p - q);
      const box = { x: a, y: MARGIN.top, width: b - a, height: this.size.height - MARGIN.top - MARGIN.bottom };
      this.cross.append(draw("rect", { class: "choice", ...box }));
    });
    plot.addEventListener("pointerdown", (event) => {
      if (event.pointerType === "touch" || event.button) return;
      start = inside(where(event));
      plot.setPointerCapture(event.pointerId);
    });
    plot.addEventListener("pointerup", (event) => {
      const ends = start === null ? null : [start, inside(where(event))].sort((p, q) => p - q);
      start = null;
      if (ends && ends[1] - ends[0] > 6) zoom([this.x.invert(ends[0]), this.x.invert(ends[1])]);
    });
    plot.addEventListener("pointerleave", () => view.point(null, this));
    plot.addEventListener("dblclick", () => zoom(null));
    plot.addEventListener("blur", () => view.point(null, this));
    plot.addEventListener("keydown", (event) => this.key(event));
  },

  key(event) {
    const list = this.track()[view.axis];
    const [from, to] = this.size.domain;
    const open = list.map((x, index) => (known(x) && x >= from && x <= to ? index : -1)).filter((index) => index >= 0);
    if (!open.length) return;
    const at = this.at === null ? open.length - 1 : Math.max(open.indexOf(this.at), 0);
    const stride = event.shiftKey ? Math.max(1, Math.round(open.length / 20)) : 1;
    const moves = { ArrowLeft: at - stride, ArrowRight: at + stride, Home: 0, End: open.length - 1 };
    if (event.key in moves) {
      const target = Math.min(Math.max(moves[event.key], 0), open.length - 1);
      view.point(list[open[target]], this);
      event.preventDefault();
    } else if (event.key === "Escape") {
      if (this.at === null) zoom(null);
      view.point(null, this);
    } else if (event.key === "+" || event.key === "-") {
      const middle = list[open[at]];
      const half = ((to - from) / 2) * (event.key === "+" ? 0.5 : 2);
      const [least, most] = axisExtent();
      const range = [Math.max(least, middle - half), Math.min(most, middle + half)];
      zoom(range[0] <= least && range[1] >= most ? null : range);
      view.point(middle, this);
    }
  },
});
