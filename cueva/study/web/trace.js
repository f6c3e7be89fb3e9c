// One text, token by token: who proposed it, how sure the model was, and which experts it went to.

function drawTrace(parent) {
  const trace = DATA.trace;
  if (!trace) {
    parent.append(empty(DATA.absent.trace));
    return;
  }
  const reader = new TraceReader(trace);
  parent.append(reader.root);
  reader.paint();
  reader.read(Math.max(trace.tokens.findIndex((token) => !token.prompt), 0), false);
}

class TraceReader {
  constructor(trace) {
    this.trace = trace;
    this.chosen = trace.expert ? unpack(trace.expert, "uint16") : [];
    this.weight = trace.weight ? unpack(trace.weight, "uint16") : [];
    this.mode = "drafts";
    this.focus = [0, 0]; // the gate and expert of the third mode
    this.key = make("div.legend.trace-key");
    this.text = make("div.tokens", {
      tabindex: 0,
      role: "listbox",
      "aria-label": "The text; move from token to token with the arrow keys",
      "aria-orientation": "horizontal",
    });
    this.spans = trace.tokens.map((token, index) => this.span(token, index));
    this.text.append(...this.spans);
    this.card = make("div.card", { "aria-live": "polite" });
    const side = make("div.side", null, this.card);
    const main = make("div.reading", null, make("div.trace-bar", null, this.modes(), this.key), this.text);
    this.root = make("div.trace", null, make("p.lead.facts", null, this.facts()), main, side);
    this.listen();
  }

  /** What drafting saved in this text. */
  facts() {
    const { tokens, proposed, accepted, cut } = this.trace;
    const written = tokens.filter((token) => !token.prompt).length;
    const parts = [`${whole(tokens.length - written)} tokens of prompt, ${whole(written)} written`];
    if (cut) parts[0] = `The last ${whole(tokens.length)} tokens of a longer text`;
    proposed.forEach((count, index) => {
      if (!count) return;
      const name = proposed.length > 1 ? `draft ${index + 1}` : "drafts";
      parts.push(`${name}: ${words.percent(accepted[index] / count)} of ${whole(count)} accepted`);
    });
    if (proposed.some((count) => count > 0)) {
      parts.push(`${this.trace.tokens_per_pass.toFixed(2)} tokens per pass of the model instead of 1`);
    } else if (written) parts.push("written without drafts");
    return `${parts.join("; ")}.`;
  }

  span(token, index) {
    const span = make("span.token", { role: "option", id: `token-${index}`, "data-index": index }, visible(token));
    if (token.prompt) span.classList.add("prompt");
    return span;
  }

  modes() {
    const row = make("div.segments", { role: "group", "aria-label": "What the colours show" });
    const choices = [["drafts", "drafts"], ["sure", "probability"]];
    if (this.trace.gates.length) choices.push(["expert", "one expert"]);
    for (const [mode, name] of choices) {
      const button = make("button", { type: "button", "aria-pressed": mode === this.mode, "data-mode": mode }, name);
      button.addEventListener("click", () => this.switch(mode));
      row.append(button);
    }
    this.row = row;
    return row;
  }

  switch(mode) {
    this.mode = mode;
    for (const button of this.row.children) button.setAttribute("aria-pressed", button.dataset.mode === mode);
    this.paint();
  }

  // --- colours --------------------------------------------------------------------------------------------------------

  paint() {
    for (const [index, token] of this.trace.tokens.entries()) {
      const span = this.spans[index];
      span.style.removeProperty("--tint");
      span.style.removeProperty("--part");
      span.classList.remove("depth-1", "depth-2", "depth-3", "depth-4", "tinted");
      if (this.mode === "drafts" && token.drafted) span.classList.add(`depth-${Math.min(token.drafted, 4)}`);
      if (this.mode === "sure" && known(token.p)) this.tint(span, "--c2", 1 - token.p);
      if (this.mode === "expert") this.tint(span, "--c1", this.weightOf(index, ...this.focus) / this.heaviest());
    }
    this.key.replaceChildren(...this.keyParts());
  }

  tint(span, colour, part) {
    span.classList.add("tinted");
    span.style.setProperty("--tint", `var(${colour})`);
    span.style.setProperty("--part", `${Math.round(70 * Math.min(Math.max(part, 0), 1))}%`);
  }

  keyParts() {
    if (this.mode === "sure") return [make("span.note", null, "the stronger the colour, the less likely the model found the token")];
    if (this.mode === "expert") {
      const [gate, expert] = this.focus;
      const count = this.spans.filter((_, index) => this.weightOf(index, gate, expert) > 0).length;
      const text = `${this.trace.gates[gate]}, expert ${expert}: ${count} tokens, stronger is heavier; choose another on the right`;
      return [make("span.note", null, text)];
    }
    const depths = [...new Set(this.trace.tokens.map((token) => token.drafted))].filter(Boolean).sort((a, b) => a - b);
    const names = depths.map((depth) => make("span", null, make(`i.patch.depth-${Math.min(depth, 4)}`), `accepted draft ${depth}`));
    return [...names, make("span", null, make("i.patch"), "the model’s own choice"), make("span.prompt", null, "prompt")];
  }

  // --- experts --------------------------------------------------------------------------------------------------------

  /** The choices of a token at a gate: [[expert, weight], ...], heaviest first; none where the gate did not see it. */
  choices(index, gate) {
    const { slots, tokens, unit } = this.trace;
    const start = (gate * tokens.length + index) * slots;
    const result = [];
    for (let slot = start; slot < start + slots; slot++) {
      if (this.chosen[slot] !== 65535) result.push([this.chosen[slot], this.weight[slot] * unit]);
    }
    return result.sort((a, b) => b[1] - a[1]);
  }

  weightOf(index, gate, expert) {
    const found = this.choices(index, gate).find(([one]) => one === expert);
    return found ? found[1] : 0;
  }

  heaviest() {
    return this.spans.reduce((most, _, index) => Math.max(most, this.weightOf(index, ...this.focus)), 0) || 1;
  }

  // --- the card of one token ------------------------------------------------------------------------------------------

  read(index, speak) {
    if (index < 0 || index >= this.spans.length) return;
    this.index = index;
    for (const span of this.text.querySelectorAll(".now")) span.classList.remove("now");
    this.spans[index].classList.add("now");
    this.text.setAttribute("aria-activedescendant", `token-${index}`);
    this.card.setAttribute("aria-live", speak ? "polite" : "off");
    const token = this.trace.tokens[index];
    const rows = [
      ["token", make("code", null, JSON.stringify(token.text))],
      ["id", whole(token.id)],
      ["probability", known(token.p) ? chance(token.p) : "no token before it"],
      ["proposed by", who(token)],
    ];
    const facts = make("dl", null, ...rows.flatMap(([name, value]) => [make("dt", null, name), make("dd", null, value)]));
    this.card.replaceChildren(facts, this.expertTable(index));
  }

  expertTable(index) {
    if (!this.trace.gates.length) return make("p.note", null, "This model has no experts.");
    const rows = this.trace.gates.map((name, gate) => {
      const choices = this.choices(index, gate);
      const total = choices.reduce((sum, [, weight]) => sum + weight, 0) || 1;
      const chips = choices.flatMap(([expert, weight]) => [this.chip(gate, expert, weight, weight / total), " "]);
      return make("tr", null, make("th", { scope: "row" }, name), make("td", null, ...(chips.length ? chips : ["not seen here"])));
    });
    const head = make("caption", null, "went to expert (weight)");
    return make("div.scroll", null, make("table.experts", null, head, make("tbody", null, ...rows)));
  }

  chip(gate, expert, weight, part) {
    const chip = make(
      "button.chip",
      { type: "button", title: `${this.trace.gates[gate]}, expert ${expert}, weight ${weight.toFixed(3)}: show its tokens` },
      make("b", null, String(expert)),
      ` ${weight.toFixed(2)}`,
    );
    chip.style.setProperty("--part", `${Math.round(60 * part)}%`);
    chip.addEventListener("click", () => {
      this.focus = [gate, expert];
      this.switch("expert");
    });
    return chip;
  }

  listen() {
    const under = (event) => event.target.closest && event.target.closest(".token");
    this.text.addEventListener("pointerover", (event) => {
      const span = under(event);
      if (span) this.read(Number(span.dataset.index), false);
    });
    this.text.addEventListener("click", (event) => {
      const span = under(event);
      if (span) this.read(Number(span.dataset.index), true);
    });
    this.text.addEventListener("keydown", (event) => {
      const last = this.spans.length - 1;
      const moves = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -10, ArrowDown: 10, Home: -last, End: last };
      if (!(event.key in moves)) return;
      this.read(Math.min(Math.max(this.index + moves[event.key], 0), last), true);
      this.spans[this.index].scrollIntoView({ block: "nearest" });
      event.preventDefault();
    });
  }
}

/** A token as it is shown: line ends and tabs visible, nothing ever empty. */
function visible(token) {
  const text = token.text.replace(/\r/g, "␍").replace(/\n/g, "↵\n").replace(/\t/g, "⇥   ");
  return text || "∅";
}

function chance(p) {
  if (p >= 0.0005) return words.percent(p);
  return p > 0 ? `1 in ${words.short(1 / p)}` : "below 1 in 10^300";
}

function who(token) {
  if (token.prompt) return "the prompt";
  return token.drafted ? `MTP draft ${token.drafted}, accepted` : "the model itself";
}
