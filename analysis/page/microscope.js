// The token microscope: responses as text, a colour a token, beside ratio against probability of the whole step.

const Microscope = (data, { onStep }) => {
  const scope = data.tokens, r = scope.responses, count = r.start.length;
  const t = Object.fromEntries(Object.entries(scope.tokens).map(([name, packed]) => [name, column(packed)]));
  const side = (i) => t.kind[i] % 3, klass = (i) => Math.floor(t.kind[i] / 3);
  const tokensOf = (response) => Array.from({ length: r.length[response] }, (_, n) => r.start[response] + n);
  const responseOf = (i) => {  // the last response that starts at or before token i
    let low = 0, high = count - 1;
    while (low < high) {
      const middle = Math.ceil((low + high) / 2);
      if (r.start[middle] <= i) low = middle;
      else high = middle - 1;
    }
    return low;
  };
  const all = Array.from({ length: count }, (_, n) => n);
  const state = { run: 0, step: null, response: null, beside: "group", chosen: null, colour: "", forks: 0.2, near: null };
  let scatter = null, spans = new Map(), drawn = [];

  // ---------------------------------------------------------------- colours

  const largest = (name) => quantile(Array.from(t[name], Math.abs), 0.995) || 1;
  // Linear near 0, logarithmic beyond: effects span decades.
  const squeezed = (value, most) => Math.asinh(value / most * 100) / Math.asinh(100);
  const divide = (name, label, text, form = signed) => {
    if (!t[name]) return null;
    const most = largest(name);
    return { label, text, two: true, share: (i) => 0.5 + squeezed(t[name][i], most) / 2,
      ticks: [form(-most, 2), "0", form(most, 2)], value: (i) => t[name][i] };
  };
  const topEntropy = t.entropy ? quantile(t.entropy, 0.995) || 1 : 1;
  const COLOURS = {
    entropy: t.entropy && { label: "entropy", text: "entropy of the state, nats", share: (i) => t.entropy[i] / topEntropy,
      ticks: ["0", show(topEntropy / 2, 2), show(topEntropy, 3)] },
    probability: t.logp && { label: "probability", text: "probability of the token at the update: pale is certain", share: (i) => 1 - Math.exp(t.logp[i]), ticks: ["1", "0.5", "0"] },
    ratio: t.logr && { label: "ratio", text: "π / π_old: orange fell, purple rose", two: true,
      share: (i) => 0.5 + t.logr[i] / (2 * Math.log(1.5)), ticks: ["0.67", "1", "1.5"] },
    class: { label: "class", text: "", classes: true },
    weight: divide("weight", "weight", "weight that the loss put on ∇ log π: orange pushes down, purple up"),
    influence: divide("dentropy_exact", "influence, nats", "what the token did to the policy’s entropy: orange lowers, purple raises"),
    dentropy: divide("dentropy", "influence, logit space", "first-order entropy change in logits, per unit of step: orange lowers, purple raises"),
  };
  const paint = (i) => {
    const how = COLOURS[state.colour];
    if (how.classes) return CLASS_COLOURS[klass(i)] ? rgb(CLASS_COLOURS[klass(i)]) : null;
    const share = how.share(i);
    return Number.isNaN(share) ? null : along((how.two ? TWO : ONE)[THEME.dark ? "dark" : "light"], share);
  };
  const coat = (span, i) => {
    const parts = paint(i);
    span.style.backgroundColor = parts ? css(parts) : "";
    span.style.color = parts ? inkOn(parts) : "";
  };
  const legend = () => {
    const how = COLOURS[state.colour], parts = [];
    if (how.classes) {
      CLASSES.forEach((name, n) => {
        const key = el("span", { class: "key" }, name);
        if (CLASS_COLOURS[n]) {
          key.style.backgroundColor = CLASS_COLOURS[n];
          key.style.color = inkOn(rgb(CLASS_COLOURS[n]));
        }
        parts.push(key);
      });
      parts.push(el("span", {}, "A > 0 or A < 0, probability at least 0.5 or below"));
    } else {
      const bar = el("span", { class: "bar", role: "img", "aria-label": how.text });
      bar.style.background = `linear-gradient(to right, ${(how.two ? TWO : ONE)[THEME.dark ? "dark" : "light"].join(", ")})`;
      parts.push(el("span", {}, how.ticks[0], " "), bar, el("span", {}, how.ticks[2]), el("span", {}, how.text + (how.two && state.colour !== "ratio" ? " (logarithmic)" : "")));
    }
    const low = el("span", { class: "tok low" }, " low "), high = el("span", { class: "tok high" }, " high "), fork = el("span", { class: "tok fork" }, " fork ");
    parts.push(el("span", {}, "outside the clip: ", low, " ", high), el("span", {}, fork, ` entropy ≥ ${show(limit())}`));
    fill(at("legend"), ...parts);
  };

  // ---------------------------------------------------------------- forks

  const limits = new Map();
  const limit = () => {
    const key = `${state.run} ${state.step} ${state.forks}`;
    if (!limits.has(key)) limits.set(key, t.entropy ? quantile(stepTokens().map((i) => t.entropy[i]), 1 - state.forks) : Infinity);
    return limits.get(key);
  };
  const isFork = (i) => t.entropy && t.entropy[i] >= limit();
  const goFork = (by) => {
    const forks = tokensOf(state.response).filter(isFork);
    if (!forks.length) return;
    const now = state.chosen === null ? (by > 0 ? -1 : Infinity) : state.chosen;
    const next = by > 0 ? forks.find((i) => i > now) ?? forks[0] : forks.findLast((i) => i < now) ?? forks[forks.length - 1];
    choose(next, true);
  };

  // ---------------------------------------------------------------- which

  const inStep = () => all.filter((n) => r.run[n] === state.run && r.step[n] === state.step);
  let cached = ["", []];
  const stepTokens = () => {
    const key = `${state.run} ${state.step}`;
    if (cached[0] !== key) cached = [key, inStep().flatMap(tokensOf)];
    return cached[1];
  };
  const steps = () => scope.runs[state.run].steps;
  const verdict = (n) => scope.verdicts[r.verdict[n]];
  const tick = (n) => ({ correct: "✓", "": "·" })[verdict(n)] ?? "✗";
  const group = (n) => all.filter((m) => r.run[m] === r.run[n] && r.step[m] === r.step[n] && r.prompt[m] === r.prompt[n]);
  // The same prompt elsewhere: at other steps, and in other runs of the page.
  const elsewhere = (n) => all.filter((m) => r.prompt[m] === r.prompt[n] && (r.run[m] !== r.run[n] || r.step[m] !== r.step[n]));
  const where = (n) => `${scope.runs.length > 1 ? `${scope.runs[r.run[n]].label}, ` : ""}step ${r.step[n]}`;
  const mean = (list) => list.reduce((a, b) => a + b, 0) / list.length;

  const setRun = (run) => {
    state.run = run;
    at("scope-run").value = run;
    at("scope-step").max = steps().length - 1;
    setStep(nearest(state.step ?? steps()[0]));
  };
  const nearest = (step) => steps().reduce((best, one) => (Math.abs(one - step) < Math.abs(best - step) ? one : best));
  const setStep = (step) => {
    const before = scope.prompts[r.prompt[state.response]];
    state.step = step;
    at("scope-step").value = steps().indexOf(step);
    at("scope-step-said").value = `${step}`;
    const mine = inStep();
    const prompts = [...new Set(mine.map((n) => r.prompt[n]))];
    fill(at("scope-prompt"), ...prompts.map((p) => {
      const of = mine.filter((n) => r.prompt[n] === p), right = of.filter((n) => verdict(n) === "correct").length;
      const places = new Set(all.filter((n) => r.prompt[n] === p && r.run[n] === state.run).map((n) => r.step[n])).size;
      const known = of.some((n) => verdict(n)) ? ` · ${right}/${of.length} right` : ` · ${of.length}`;
      return el("option", { value: p }, `${scope.prompts[p].id}${known}${places > 1 ? ` · in ${places} steps` : ""}`);
    }));
    const stay = prompts.find((p) => scope.prompts[p] === before);
    setResponse(mine.find((n) => r.prompt[n] === (stay ?? first(mine))));
    onStep(step);
  };
  // Something to look at: the prompt that has most tokens outside the clip.
  const first = (mine) => {
    const outside = new Map();
    for (const n of mine) outside.set(r.prompt[n], (outside.get(r.prompt[n]) || 0) + tokensOf(n).filter(side).length);
    return [...outside].reduce((best, one) => (one[1] > best[1] ? one : best))[0];
  };
  const setResponse = (response) => {
    if (r.prompt[state.response] !== r.prompt[response] && !["", "all", "group"].includes(state.beside)) state.beside = "";
    state.response = response;
    state.chosen = null;
    at("scope-prompt").value = r.prompt[response];
    const mine = group(response);
    fill(at("rollouts"), "response ", ...mine.map((n) => el("button", { type: "button", role: "radio", "aria-checked": String(n === response),
      title: `response ${r.rollout[n]}: ${verdict(n) || "not graded"}, ${r.length[n]} tokens`, onclick: () => setResponse(n) }, `${tick(n)} ${r.rollout[n]}`)));
    const others = elsewhere(response);
    fill(at("beside"), el("option", { value: "" }, "nothing"), el("option", { value: "group" }, "its group"),
      others.length ? el("option", { value: "all" }, "the same prompt, everywhere") : el("option", { disabled: true }, "this prompt is recorded nowhere else"),
      ...others.map((n) => el("option", { value: n }, `${where(n)}, response ${r.rollout[n]} ${tick(n)}`)),
      ...mine.filter((n) => n !== response).map((n) => el("option", { value: n }, `this group, response ${r.rollout[n]} ${tick(n)}`)));
    if (state.beside === "all" && !others.length) state.beside = "";
    at("beside").value = state.beside;
    write();
  };
  const besides = () => {
    if (state.beside === "") return [];
    if (state.beside === "group") return group(state.response).filter((n) => n !== state.response);
    if (state.beside !== "all") return [Number(state.beside)];
    const places = new Map();  // one response a place: the first
    for (const n of elsewhere(state.response)) if (!places.has(where(n))) places.set(where(n), n);
    return [...places.values()];
  };

  // ---------------------------------------------------------------- the text

  const word = (i) => scope.words[t.word[i]];
  const written = (i) => {
    const text = word(i);
    return text === "" ? "▯" : text.replace(/\n/g, "⏎\n").replace(/\t/g, "⇥");
  };
  const pane = (n, main) => {
    const tokens = tokensOf(n), prompt = scope.prompts[r.prompt[n]];
    const other = main || r.prompt[n] !== r.prompt[state.response] ? null : tokensOf(state.response);
    const parts = other ? tokens.findIndex((i, k) => k >= other.length || word(i) !== word(other[k])) : -1;
    const effect = t.dentropy_exact ? tokens.reduce((sum, i) => sum + (t.dentropy_exact[i] || 0), 0) : NaN;
    const facts = [`response ${r.rollout[n]}`, `update ${r.update[n] + 1}`, `${tokens.length} tokens`, r.reward[n] === null ? null : `reward ${show(r.reward[n])}`,
      t.advantage ? `A = ${signed(t.advantage[tokens[0]])}` : null, t.entropy ? `mean entropy ${show(mean(tokens.map((i) => t.entropy[i])))}` : null,
      Number.isNaN(effect) ? null : `Σ influence ${signed(effect, 2)} nats`];
    const body = el("div", { class: "response", role: "group", "aria-label": `response ${r.rollout[n]}, a token at a time: arrow keys` });
    tokens.forEach((i, k) => {
      const name = ["tok", ["", "low", "high"][side(i)], isFork(i) ? "fork" : "", k === parts ? "parts" : ""].filter(Boolean).join(" ");
      const span = el("span", { class: name, "data-i": i, tabindex: k ? "-1" : "0" }, written(i));
      if (k === parts) span.title = "here it parts from the first response";
      coat(span, i);
      spans.set(i, span);
      body.append(span);
    });
    return el("div", { class: "pane" },
      el("h3", {}, state.beside === "group" && !main ? `response ${r.rollout[n]} · ` : `${where(n)} · ${prompt.id} · `, el("span", { class: "verdict" }, `${tick(n)} ${(verdict(n) || "not graded").replace("_", " ")}`)),
      state.beside === "group" && !main ? null : el("p", { class: "facts" }, facts.filter(Boolean).join(" · ")),
      main || !other ? el("div", { class: "prompt" }, prompt.text || "(the record has no text of the prompt)", prompt.answer ? el("div", {}, `answer: ${prompt.answer}`) : null) : null,
      body, at("token-table").checked ? numbers(tokens) : null);
  };
  const FACTS = [["probability", (i) => (t.logp ? show(Math.exp(t.logp[i])) : "–")], ["old", (i) => (t.logp && t.logr ? show(Math.exp(t.logp[i] - t.logr[i])) : "–")],
    ["ratio", (i) => (t.logr ? show(Math.exp(t.logr[i]), 4) : "–")], ["entropy", (i) => (t.entropy ? show(t.entropy[i]) : "–")],
    ["advantage", (i) => (t.advantage ? signed(t.advantage[i]) : "–")], ["weight", (i) => (t.weight ? signed(t.weight[i]) : "–")],
    ["class", (i) => CLASSES[klass(i)]], ["clip", (i) => ["inside", "outside, low", "outside, high"][side(i)]],
    ["influence", (i) => (t.dentropy_exact ? signed(t.dentropy_exact[i]) : "–")], ["in logits", (i) => (t.dentropy ? signed(t.dentropy[i]) : "–")]];
  const numbers = (tokens) => el("div", { class: "number-table wide", tabindex: "0" }, el("table", {},
    el("thead", {}, el("tr", {}, el("th", {}, "token"), ...FACTS.map(([name]) => el("th", {}, name)))),
    el("tbody", {}, ...tokens.map((i) => el("tr", {}, el("td", {}, written(i)), ...FACTS.map(([, value]) => el("td", {}, value(i))))))));

  const write = () => {
    spans = new Map();
    drawn = [state.response, ...besides()];
    at("panes").classList.toggle("stacked", state.beside === "group");
    fill(at("panes"), ...drawn.map((n, k) => pane(n, k === 0)));
    legend();
    inspect(null);
    plot();
    if (spans.has(state.chosen)) choose(state.chosen, false);
  };
  const recolour = () => {
    for (const [i, span] of spans) {
      coat(span, i);
      span.classList.toggle("fork", Boolean(isFork(i)));
    }
    legend();
    plot();
  };

  const inspect = (i) => {
    if (i === null) {
      const forks = tokensOf(state.response).filter(isFork).length;
      return fill(at("inspector"), el("p", { class: "facts" }, `Point at a token, or choose one: its numbers stand here. ${forks} forks in this response; `, el("kbd", {}, "n"), " goes to the next."));
    }
    const n = responseOf(i), place = i - r.start[n];
    const dl = el("dl");
    for (const [name, value] of FACTS) dl.append(el("dt", {}, name), el("dd", {}, value(i)));
    fill(at("inspector"), el("h3", {}, `«${word(i)}»`), el("p", { class: "facts" }, `token ${place + 1} of ${r.length[n]}, response ${r.rollout[n]}, ${where(n)}${isFork(i) ? ", a fork" : ""}`), dl);
  };

  // ---------------------------------------------------------------- choosing

  const choose = (i, focus) => {
    const n = responseOf(i);
    if (!drawn.includes(n)) setResponse(n);
    for (const span of spans.values()) {
      span.classList.remove("chosen");
      span.tabIndex = -1;
    }
    state.chosen = i;
    const span = spans.get(i);
    span.classList.add("chosen");
    span.tabIndex = 0;
    if (focus) {
      span.focus({ preventScroll: true });
      const box = span.getBoundingClientRect();
      if (box.top < 70 || box.bottom > innerHeight) span.scrollIntoView({ block: "center" });
    }
    inspect(i);
    if (scatter) scatter.redraw(false, false);
  };
  const token = (event) => event.target.closest?.("#panes .tok");
  const walk = (by) => {
    const n = responseOf(state.chosen), next = state.chosen + by;
    if (next >= r.start[n] && next < r.start[n] + r.length[n]) choose(next, true);
  };
  // The token above or below.
  const line = (by) => {
    const now = spans.get(state.chosen).getBoundingClientRect(), n = responseOf(state.chosen);
    const away = tokensOf(n).map((i) => ({ i, box: spans.get(i).getBoundingClientRect() })).filter(({ box }) => (by > 0 ? box.top > now.top + 4 : box.top < now.top - 4));
    if (!away.length) return;
    const tops = away.map(({ box }) => box.top), row = by > 0 ? Math.min(...tops) : Math.max(...tops);
    const best = away.filter(({ box }) => Math.abs(box.top - row) < 4).reduce((a, b) => (Math.abs(a.box.left - now.left) <= Math.abs(b.box.left - now.left) ? a : b));
    choose(best.i, true);
  };
  const rollout = (by) => {
    const mine = group(state.response);
    setResponse(mine[(mine.indexOf(state.response) + by + mine.length) % mine.length]);
  };
  const stepBy = (by) => {
    const place = Math.max(0, Math.min(steps().length - 1, steps().indexOf(state.step) + by));
    if (steps()[place] !== state.step) setStep(steps()[place]);
  };
  const colourBy = (by) => {
    const select = at("colour");
    select.selectedIndex = (select.selectedIndex + by + select.length) % select.length;
    setColour(select.value);
  };
  const setColour = (name) => {
    state.colour = name;
    at("colour").value = name;
    recolour();
  };

  // ---------------------------------------------------------------- ratio against probability

  const plot = () => {
    if (!t.logp || !t.logr) return;
    const mine = stepTokens().filter((i) => !Number.isNaN(t.logr[i]) && !Number.isNaN(t.logp[i]));
    const ratios = mine.map((i) => Math.exp(t.logr[i]));
    const bounds = scope.runs[state.run].bounds || [];
    const low = ratios.reduce((a, b) => Math.min(a, b), Math.min(0.75, ...bounds)), high = ratios.reduce((a, b) => Math.max(a, b), Math.max(1.3, ...bounds));
    const host = at("scatter");
    if (scatter) scatter.destroy();
    fill(host);
    const axis = { stroke: THEME.faint, grid: { stroke: THEME.line, width: 1 }, ticks: { stroke: THEME.line, size: 4 }, font: "11px system-ui", labelFont: "12px system-ui" };
    const ticks = [0.01, 0.1, 0.25, 0.5, ...(bounds.length ? bounds : [1]), 2, 4, 10, 100].filter((v) => v >= low / 1.1 && v <= high * 1.1).sort((a, b) => a - b);
    const mark = THEME.mark, accent = THEME.accent, faint = THEME.faint;
    const inks = CLASS_COLOURS.map((hex) => (hex ? onPaper(hex) : faint));
    let cloud = null;
    const place = (u, i) => [u.valToPos(Math.exp(t.logp[i]), "x", true), u.valToPos(Math.exp(t.logr[i]), "y", true)];
    const shape = (ctx, i, left, top, size) => {
      ctx.beginPath();
      if (klass(i) === 2 || klass(i) === 3) {
        ctx.moveTo(left, top - size);
        ctx.lineTo(left + size, top + size);
        ctx.lineTo(left - size, top + size);
        ctx.closePath();
      } else ctx.arc(left, top, size, 0, 7);
    };
    const points = (u) => {
      const ctx = u.ctx, scale = devicePixelRatio || 1;
      ctx.save();
      ctx.strokeStyle = faint;
      ctx.setLineDash([5, 4]);
      for (const value of [1, ...bounds]) {
        const top = u.valToPos(value, "y", true);
        ctx.beginPath();
        ctx.moveTo(u.bbox.left, top);
        ctx.lineTo(u.bbox.left + u.bbox.width, top);
        ctx.stroke();
      }
      const half = u.valToPos(0.5, "x", true);
      ctx.beginPath();
      ctx.moveTo(half, u.bbox.top);
      ctx.lineTo(half, u.bbox.top + u.bbox.height);
      ctx.stroke();
      ctx.setLineDash([]);
      // The cloud once a size: only what is marked changes from then on.
      if (!cloud || cloud.width !== ctx.canvas.width) {
        cloud = el("canvas", { width: ctx.canvas.width, height: ctx.canvas.height });
        const own = cloud.getContext("2d");
        own.globalAlpha = mine.length > 4000 ? 0.45 : 0.75;
        for (const i of mine) {
          const [left, top] = place(u, i);
          shape(own, i, left, top, 2.4 * scale);
          own.fillStyle = inks[klass(i)];
          own.fill();
        }
      }
      ctx.drawImage(cloud, 0, 0);
      ctx.strokeStyle = mark;
      ctx.lineWidth = scale;
      for (const i of drawn.filter((n) => r.run[n] === state.run && r.step[n] === state.step).flatMap(tokensOf)) {
        const [left, top] = place(u, i);
        shape(ctx, i, left, top, 3.4 * scale);
        ctx.fillStyle = inks[klass(i)];
        ctx.fill();
        ctx.stroke();
      }
      for (const [i, width, size] of [[state.near, 2, 6], [state.chosen, 3, 8]]) {
        if (i === null || r.run[responseOf(i)] !== state.run || r.step[responseOf(i)] !== state.step) continue;
        const [left, top] = place(u, i);
        ctx.strokeStyle = accent;
        ctx.lineWidth = width * scale;
        ctx.beginPath();
        ctx.arc(left, top, size * scale, 0, 7);
        ctx.stroke();
      }
      ctx.restore();
    };
    // The nearest token within 18 px of the cursor.
    const under = (u) => {
      const { left, top } = u.cursor;
      let best = null, least = 18 ** 2;
      for (const i of mine) {
        const away = (u.valToPos(Math.exp(t.logp[i]), "x") - left) ** 2 + (u.valToPos(Math.exp(t.logr[i]), "y") - top) ** 2;
        if (away < least) [best, least] = [i, away];
      }
      return best;
    };
    scatter = new uPlot({
      width: Math.max(260, host.clientWidth), height: 300, legend: { show: false },
      series: [{}, { show: true, stroke: null, points: { show: false }, paths: () => null }],
      scales: { x: { time: false, range: () => [-0.03, 1.03] }, y: { distr: 3, range: () => [low / 1.15, high * 1.15] } },
      axes: [{ ...axis, size: 42, label: "probability at the update", labelSize: 16, splits: () => [0, 0.25, 0.5, 0.75, 1], values: (_, s) => s.map((v) => show(v)) },
        { ...axis, size: 54, label: "π / π_old", labelSize: 16, splits: () => ticks, filter: (_, s) => s, values: (_, s) => s.map((v) => show(v)) }],
      cursor: { drag: { x: false, y: false }, points: { show: false } },
      hooks: {
        draw: [points],
        setCursor: [(u) => {
          if (u.cursor.left < 0 || u.cursor.left === undefined) return;
          const found = under(u);
          if (found === state.near) return;
          spans.get(state.near)?.classList.remove("near");
          state.near = found;
          spans.get(found)?.classList.add("near");
          inspect(found ?? state.chosen);
          u.redraw(false, false);
        }],
      },
    }, [[0, 1], [1, 1]], host);
    scatter.over.addEventListener("click", () => {
      const found = under(scatter);
      if (found !== null) choose(found, false);
    });
    scatter.over.setAttribute("role", "img");
    scatter.over.setAttribute("aria-label", `probability against ratio of ${mine.length} tokens of step ${state.step}`);
  };

  // ---------------------------------------------------------------- start

  const start = () => {
    at("scope").hidden = false;
    at("run-control").hidden = scope.runs.length < 2;
    fill(at("scope-run"), ...scope.runs.map((run, n) => el("option", { value: n }, run.label)));
    const known = Object.entries(COLOURS).filter(([, how]) => how);
    fill(at("colour"), ...known.map(([name, how]) => el("option", { value: name }, how.label)));
    state.colour = COLOURS.entropy ? "entropy" : known[0][0];
    at("colour").value = state.colour;
    at("forks-said").value = "20 %";
    at("scope-run").addEventListener("change", (event) => setRun(Number(event.target.value)));
    at("scope-step").addEventListener("input", (event) => setStep(steps()[Number(event.target.value)]));
    at("scope-prompt").addEventListener("change", (event) => setResponse(inStep().find((n) => r.prompt[n] === Number(event.target.value))));
    at("colour").addEventListener("change", (event) => setColour(event.target.value));
    at("forks").addEventListener("input", (event) => {
      state.forks = Number(event.target.value) / 100;
      at("forks-said").value = `${event.target.value} %`;
      recolour();
    });
    at("fork-next").addEventListener("click", () => goFork(1));
    at("fork-back").addEventListener("click", () => goFork(-1));
    at("beside").addEventListener("change", (event) => {
      state.beside = event.target.value;
      write();
    });
    at("token-table").addEventListener("change", write);
    const panes = at("panes");
    panes.addEventListener("click", (event) => token(event) && choose(Number(token(event).dataset.i), true));
    panes.addEventListener("focusin", (event) => token(event) && Number(token(event).dataset.i) !== state.chosen && choose(Number(token(event).dataset.i), false));
    panes.addEventListener("mouseover", (event) => {
      if (!token(event)) return;
      state.near = Number(token(event).dataset.i);
      inspect(state.near);
      scatter?.redraw(false, false);
    });
    panes.addEventListener("mouseleave", () => {
      state.near = null;
      inspect(state.chosen);
      scatter?.redraw(false, false);
    });
    panes.addEventListener("keydown", (event) => {
      if (!token(event)) return;
      const move = { ArrowRight: () => walk(1), ArrowLeft: () => walk(-1), ArrowDown: () => line(1), ArrowUp: () => line(-1),
        Home: () => choose(r.start[responseOf(state.chosen)], true), End: () => choose(r.start[responseOf(state.chosen)] + r.length[responseOf(state.chosen)] - 1, true) }[event.key];
      if (!move) return;
      event.preventDefault();
      move();
    });
    let waiting = 0;
    new ResizeObserver(() => {
      cancelAnimationFrame(waiting);
      waiting = requestAnimationFrame(() => {
        const width = at("scatter").clientWidth;
        if (scatter && width && Math.abs(width - scatter.width) > 1) scatter.setSize({ width, height: 300 });
      });
    }).observe(at("scatter"));
    setRun(0);
  };

  const keys = { n: () => goFork(1), p: () => goFork(-1), j: () => rollout(1), k: () => rollout(-1), "]": () => stepBy(1), "[": () => stepBy(-1),
    c: () => colourBy(1), C: () => colourBy(-1), t: () => at("token-table").click() };
  // Where a token stands in the scatter, CSS pixels from its corner.
  const place = (i) => ({ left: scatter.valToPos(Math.exp(t.logp[i]), "x"), top: scatter.valToPos(Math.exp(t.logr[i]), "y") });
  return { start, keys, redraw: write, step: () => state.step, goNear: (step) => setStep(nearest(step)), state, stepTokens, place, shown: () => drawn };
};
