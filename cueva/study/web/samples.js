// A flip-book of what the model wrote as it learned: one page per step that has samples.

function drawSamples(parent) {
  const pages = DATA.samples;
  if (!pages.length) {
    parent.append(empty(DATA.absent.samples));
    return;
  }
  const slider = make("input", { type: "range", min: 0, max: pages.length - 1, value: pages.length - 1, "aria-label": "Step" });
  const back = make("button", { type: "button", "aria-label": "Earlier" }, "‹");
  const on = make("button", { type: "button", "aria-label": "Later" }, "›");
  const play = make("button", { type: "button" }, "Play");
  const where = make("output.where");
  const body = make("div.page", { "aria-live": "polite" });
  let timer = null;

  function show(index) {
    const page = pages[index];
    slider.value = index;
    slider.setAttribute("aria-valuetext", `step ${whole(page.step)}`);
    back.disabled = index === 0;
    on.disabled = index === pages.length - 1;
    where.textContent = `step ${whole(page.step)}${heldOutAt(page.step)}`;
    body.replaceChildren(...page.items.map(sampleBlock));
  }

  function stop() {
    clearInterval(timer);
    timer = null;
    play.textContent = "Play";
  }

  const go = (index) => {
    stop();
    show(Math.min(Math.max(index, 0), pages.length - 1));
  };
  slider.addEventListener("input", () => go(Number(slider.value)));
  back.addEventListener("click", () => go(Number(slider.value) - 1));
  on.addEventListener("click", () => go(Number(slider.value) + 1));
  play.addEventListener("click", () => {
    if (timer) return stop();
    if (Number(slider.value) === pages.length - 1) show(0);
    play.textContent = "Stop";
    timer = setInterval(() => {
      const next = Number(slider.value) + 1;
      if (next >= pages.length) return stop();
      show(next);
    }, 900);
  });
  const several = pages.length > 1;
  parent.append(make("div.flip", null, several ? play : null, several ? back : null, several ? slider : null, several ? on : null, where), body);
  show(pages.length - 1);
}

/** The latest held-out measurement at or before a step, in words. */
function heldOutAt(step) {
  const { step: steps, bits_per_byte: bits } = DATA.evals;
  let found = null;
  steps.forEach((at, index) => {
    if (known(at) && at <= step && known(bits[index])) found = bits[index];
  });
  return found === null ? "" : ` · ${found.toFixed(3)} held-out bits per byte`;
}

function sampleBlock({ prompt, text, cut }) {
  const rest = prompt && text.startsWith(prompt) ? text.slice(prompt.length) : text;
  const nothing = rest ? null : make("span.note", null, "(it wrote nothing)");
  const note = cut ? make("p.note", null, "Cut for this page; metrics.jsonl has the whole text.") : null;
  return make("div", null, make("pre.sample", { tabindex: 0 }, make("span.prompt", null, prompt), rest, nothing), note);
}
