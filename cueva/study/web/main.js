// What each section shows, and the controls that all charts share.

const S = DATA.series;
const E = DATA.evals;

const depthColour = (depth) => `var(${["--c1", "--c3", "--c4", "--c5"][Math.min(depth, 3)]})`;
const percentTick = (value) => `${Number((100 * value).toPrecision(3))}%`;

/** Every step (or the band of a point's steps) faintly, its smoothed curve over it. */
function smooth(name, curve, color) {
  return [
    { name: `${name} each step`.trim(), from: "series", values: curve.mean, low: curve.low, high: curve.high, kind: "faint", color },
    { name: `${name} smoothed`.trim(), from: "series", values: curve.smooth, kind: "line", color },
  ];
}

const heldOut = (name, values, color) => ({ name, from: "evals", values: values || [], kind: "dots", color });

const CHARTS = {
  learning: () => [
    {
      title: "Loss",
      unit: "nats per token",
      label: words.fixed,
      absent: DATA.absent.steps,
      choice: true,
      height: 280,
      curves: [...smooth("training", S.loss, "var(--c1)"), heldOut("held-out", E.loss, "var(--c2)")],
    },
    {
      title: "Bits per byte",
      unit: "lower is better",
      label: words.fixed,
      absent: DATA.absent.steps,
      choice: true,
      height: 280,
      curves: [...smooth("training", S.bits_per_byte, "var(--c1)"), heldOut("held-out", E.bits_per_byte, "var(--c2)")],
    },
  ],
  drafting: () => [
    {
      title: "MTP loss by depth",
      unit: "nats per token",
      label: words.fixed,
      absent: DATA.absent.mtp,
      choice: true,
      curves: byDepth(S.mtp_loss, E.mtp_loss, "training", "held-out"),
    },
    {
      title: "Right guesses by depth",
      unit: "share of places",
      label: words.percent,
      tick: percentTick,
      absent: DATA.absent.mtp,
      floor: 0,
      curves: byDepth(S.mtp_match, E.acceptance, "hits", "accepted"),
    },
  ],
  balance: () => [
    {
      title: "MaxVio",
      unit: "0 is balance; at 1 the busiest expert has twice the mean",
      label: (value) => value.toFixed(3),
      absent: DATA.absent.max_vio,
      floor: 0,
      choice: true,
      wide: true,
      quiet: `and ${whole(S.max_vio.length)} gates, coloured blue to ochre from first to last`,
      curves: gateCurves(),
    },
    {
      title: "Sequence-wise balance loss",
      unit: `before its weight; ${whole(S.max_vio.length)} is balance`,
      label: words.short,
      absent: DATA.absent.sequence,
      curves: S.sequence_loss.mean.some((value) => value > 0) ? smooth("", S.sequence_loss, "var(--c5)") : [],
    },
  ],
  optimizer: () => [
    one("Learning rate", "", S.lr, "var(--c3)", { kind: "step", absent: DATA.absent.steps, floor: 0 }),
    {
      title: "Gradient norm",
      unit: "before clipping",
      height: 190,
      label: words.short,
      absent: DATA.absent.steps,
      choice: true,
      floor: 0,
      curves: smooth("", S.grad_norm, "var(--c4)"),
    },
    {
      title: "Speed",
      unit: "tokens per second",
      height: 190,
      label: words.whole,
      absent: DATA.absent.steps,
      floor: 0,
      curves: smooth("", S.tokens_per_second, "var(--c1)"),
    },
    one("Share of peak", "of the machine’s FLOP/s", S.peak_share, "var(--c1)", {
      label: words.percent,
      tick: percentTick,
      kind: "line",
      floor: 0,
      absent: DATA.absent.peak,
    }),
    one("Bias speed", "moved per step, up or down", S.bias_speed, "var(--c5)", {
      kind: "step",
      floor: 0,
      absent: DATA.absent.max_vio,
    }),
    one("MTP weight", "λ, factor of the MTP loss", S.mtp_weight, "var(--c2)", { kind: "step", floor: 0, absent: DATA.absent.mtp }),
  ],
};

function byDepth(training, heldOutRows, first, second) {
  const several = Math.max(training.length, heldOutRows.length) > 1;
  const curves = [];
  training.forEach((curve, index) => {
    if (!several) return curves.push(...smooth(first, curve, depthColour(0)));
    curves.push({ name: `depth ${index + 1} ${first}`, from: "series", values: curve.smooth, kind: "line", color: depthColour(index) });
  });
  heldOutRows.forEach((values, index) => {
    curves.push(heldOut(several ? `depth ${index + 1} ${second}` : second, values, several ? depthColour(index) : "var(--c2)"));
  });
  return curves;
}

function gateCurves() {
  const names = LOADS && LOADS.gates.length === S.max_vio.length ? LOADS.gates : S.max_vio.map((_, index) => `gate ${index + 1}`);
  const quiet = names.length > 10;
  const worst = { name: "worst gate each step", from: "series", values: S.worst.mean, low: S.worst.low, high: S.worst.high };
  const lines = S.max_vio.map((values, index) => ({
    name: names[index],
    from: "series",
    values,
    kind: "line",
    color: mixed(names.length > 1 ? index / (names.length - 1) : 0),
    quiet,
  }));
  return [{ ...worst, kind: "faint", color: "var(--muted)" }, ...lines];
}

function one(title, unit, curve, color, options) {
  const values = options.kind === "step" ? curve.mean : curve.smooth;
  return {
    title,
    unit,
    label: words.short,
    height: 190,
    ...options,
    curves: [{ name: title.toLowerCase(), from: "series", values, kind: options.kind, color }],
  };
}

// --- controls ---------------------------------------------------------------------------------------------------------

function drawControls(parent) {
  const group = make("div.segments", { role: "group", "aria-label": "Horizontal axis of all charts" });
  for (const axis of ["step", "tokens", "seconds"]) {
    const there = [...S[axis], ...(E[axis] || [])].some(known);
    const button = make("button", { type: "button", "aria-pressed": axis === view.axis, disabled: !there }, axisWords[axis].name);
    button.addEventListener("click", () => {
      view.axis = axis;
      for (const other of group.children) other.setAttribute("aria-pressed", other === button);
      zoom(null);
    });
    group.append(button);
  }
  const log = make("button.small", { type: "button", "aria-pressed": false }, "log axis");
  log.addEventListener("click", () => {
    view.log = !view.log;
    log.setAttribute("aria-pressed", view.log);
    zoom(null);
  });
  const all = make("button.small", { type: "button", disabled: true, title: "Drag across a chart to look closer" }, "show all");
  all.addEventListener("click", () => zoom(null));
  document.addEventListener("zoomed", () => {
    all.disabled = view.range === null;
  });
  parent.append(group, log, all);
}

// --- everything -------------------------------------------------------------------------------------------------------

drawControls(document.getElementById("controls"));
for (const place of document.querySelectorAll("[data-charts]")) {
  for (const spec of CHARTS[place.dataset.charts]()) {
    const chart = new Chart(place, spec);
    if (spec.wide) chart.root.classList.add("wide");
  }
}
for (const table of document.querySelectorAll("details[open]")) {
  table.open = table.querySelectorAll("tbody tr").length <= 15; // without scripts every table stays open
}
drawLoads(document.getElementById("loads"));
drawSamples(document.getElementById("flipbook"));
drawTrace(document.getElementById("tokens"));
