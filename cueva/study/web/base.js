// Helpers that every part of the page uses: elements, numbers in words, scales and ticks.

const DATA = JSON.parse(document.getElementById("run-data").textContent);
const SVG = "http://www.w3.org/2000/svg";

/** Make an element: make("p.note", {title: "..."}, "text", child). Text is always text, never markup. */
function make(name, attributes, ...children) {
  const [tag, ...classes] = name.split(".");
  const node = document.createElement(tag);
  if (classes.length) node.className = classes.join(" ");
  return fill(node, attributes, children);
}

function draw(name, attributes, ...children) {
  return fill(document.createElementNS(SVG, name), attributes, children);
}

function fill(node, attributes, children) {
  for (const [key, value] of Object.entries(attributes || {})) {
    if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
    else if (key.startsWith("aria-")) node.setAttribute(key, String(value));
    else if (value !== null && value !== undefined && value !== false) node.setAttribute(key, value === true ? "" : value);
  }
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

function empty(sentence) {
  return make("p.empty", null, sentence);
}

// --- numbers in words -----------------------------------------------------------------------------------------------

const known = (value) => typeof value === "number" && Number.isFinite(value);
const whole = (value) => Math.round(value).toLocaleString("en-US");

const words = {
  whole,
  fixed: (value) => value.toFixed(Math.abs(value) < 10 ? 3 : 2),
  percent: (value) => `${(100 * value).toFixed(1)}%`,
  /** Three significant digits; very small and very large numbers as 3e-5 and 12.3M. */
  short(value) {
    const size = Math.abs(value);
    if (size === 0) return "0";
    if (size < 0.0001) return Number(value.toPrecision(3)).toExponential();
    for (const [unit, letter] of [[1e12, "T"], [1e9, "B"], [1e6, "M"], [1e4, "k"]]) {
      if (size >= unit) {
        const scaled = value / (letter === "k" ? 1e3 : unit);
        return `${scaled.toFixed(Math.abs(scaled) < 99.95 ? 1 : 0)}${letter}`;
      }
    }
    return size >= 100 ? whole(value) : Number(value.toPrecision(3)).toString();
  },
  seconds(value) {
    if (value < 59.95) return `${value.toFixed(1)} s`;
    const all = Math.round(value);
    const two = (part) => String(part).padStart(2, "0");
    if (all < 3600) return `${Math.floor(all / 60)} min ${two(all % 60)} s`;
    if (all < 86400) return `${Math.floor(all / 3600)} h ${two(Math.floor((all % 3600) / 60))} min`;
    return `${Math.floor(all / 86400)} d ${Math.floor((all % 86400) / 3600)} h`;
  },
};

/** How a number on the horizontal axis is written, by axis; `tick` is the short form. */
const axisWords = {
  step: { name: "step", full: (value) => `step ${whole(value)}`, tick: words.short },
  tokens: { name: "tokens", full: (value) => `${words.short(value)} tokens`, tick: words.short },
  seconds: { name: "time", full: words.seconds, tick: clock },
};

/** A tick of a time axis: the unit that leaves a small number. */
function clock(value) {
  if (value === 0) return "0";
  if (value < 120) return `${Number(value.toPrecision(3))} s`;
  if (value < 7200) return `${Number((value / 60).toPrecision(3))} min`;
  if (value < 2 * 86400) return `${Number((value / 3600).toPrecision(3))} h`;
  return `${Number((value / 86400).toPrecision(3))} d`;
}

// --- scales ---------------------------------------------------------------------------------------------------------

/** A function from [from, to] onto [start, stop] pixels, linear or logarithmic, with its inverse. */
function scale(from, to, start, stop, log) {
  const warp = log ? Math.log10 : (value) => value;
  const back = log ? (value) => 10 ** value : (value) => value;
  const low = warp(from);
  const span = warp(to) - low || 1;
  const place = (value) => start + ((warp(value) - low) / span) * (stop - start);
  place.invert = (pixel) => back(low + ((pixel - start) / (stop - start)) * span);
  return place;
}

/** Round numbers between from and to, about `count` of them; base 60 for seconds. */
function ticks(from, to, count, log, sixty) {
  return log && to / from > 8 ? logTicks(from, to, count) : linearTicks(from, to, count, sixty);
}

function linearTicks(from, to, count, sixty) {
  const rough = (to - from) / Math.max(count, 1);
  if (!(rough > 0)) return [from];
  let step;
  if (sixty && rough > 1) {
    const choices = [1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 10800, 21600, 43200, 86400];
    step = choices.find((choice) => choice >= rough * 0.7);
  }
  if (!step) {
    const power = 10 ** Math.floor(Math.log10(rough));
    step = [1, 2, 5, 10].find((choice) => choice * power >= rough * 0.7) * power;
  }
  const result = [];
  for (let index = Math.ceil(from / step - 1e-9); index * step <= to + step * 1e-9; index++) {
    result.push(Number((index * step).toPrecision(12)));
  }
  return result;
}

function logTicks(from, to, count) {
  const decades = Math.log10(to / from);
  const leads = decades * 3 <= count + 1 ? [1, 2, 5] : [1];
  const skip = leads.length === 1 ? Math.max(1, Math.ceil(decades / Math.max(count, 1))) : 1;
  const result = [];
  for (let power = Math.floor(Math.log10(from)); power <= Math.log10(to) + 1e-9; power++) {
    if (power % skip) continue;
    for (const lead of leads) {
      const value = lead * 10 ** power;
      if (value >= from * 0.999999 && value <= to * 1.000001) result.push(value);
    }
  }
  return result;
}

/** Index of the value nearest to x in an ascending list that may hold nulls. */
function nearest(list, x) {
  let best = -1;
  let distance = Infinity;
  for (let index = 0; index < list.length; index++) {
    if (known(list[index]) && Math.abs(list[index] - x) < distance) {
      best = index;
      distance = Math.abs(list[index] - x);
    }
  }
  return best;
}

/** The value below which a share of the weight lies; pairs [value, weight] in ascending order. */
function quantile(pairs, share) {
  let left = share * pairs.reduce((sum, [, weight]) => sum + weight, 0);
  for (const [value, weight] of pairs) {
    left -= weight;
    if (left <= 0) return value;
  }
  return pairs.length ? pairs.at(-1)[0] : undefined;
}

/** A colour of the page's palette as the style sheet has it now (light, dark or print). */
function ink(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}

/** Typed numbers from base64, whatever the machine's byte order. */
function unpack(text, bits) {
  const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  const view = new DataView(bytes.buffer);
  const read = bits === "uint16" ? (at) => view.getUint16(at, true) : (at) => view.getInt16(at, true);
  return Array.from({ length: bytes.length / 2 }, (_, index) => read(2 * index));
}
