// Panels of curves with one cursor: of a run a line a metric, of a sweep a line an arm, its seeds thin beside it.

const Curves = (data, { markAt, onStep }) => {
  const sweep = data.kind === "sweep", x = data.curves.x;
  const names = data.curves.runs.map((run) => run.name);
  const columns = {};
  const values = (key) => (columns[key] = columns[key] || data.curves.metrics[key].map(column));
  const state = { window: data.window, seeds: true, arms: new Set((data.arms || []).map((arm) => arm.arm)), panels: data.panels.slice() };
  const sync = uPlot.sync("steps");
  let charts = [];

  // [{label, colour, dash, members: [column a seed]}]
  const linesOf = (panel) => {
    if (!sweep) {
      return panel.lines.map(([key, label], n) => ({ label, colour: LINE_COLOURS[n % LINE_COLOURS.length],
        dash: LINE_DASHES[Math.floor(n / LINE_COLOURS.length) % LINE_DASHES.length], members: values(key).filter(Boolean) }));
    }
    const mine = values(panel.lines[0][0]);
    return data.arms.filter((arm) => state.arms.has(arm.arm)).map((arm) => ({ label: arm.label, colour: arm.colour, dash: arm.dash,
      members: mine.filter((member, n) => member && data.curves.runs[n].arm === arm.arm) })).filter((line) => line.members.length);
  };

  // Mean over the members, and the 95 % t interval from as many as data.t has.
  const summary = (members, window) => {
    const smooth = members.map((member) => smoothed(member, window));
    const mean = new Array(x.length).fill(null), low = new Array(x.length).fill(null), high = new Array(x.length).fill(null);
    for (let i = 0; i < x.length; i++) {
      const known = smooth.map((one) => one[i]).filter((value) => !Number.isNaN(value));
      if (!known.length) continue;
      mean[i] = known.reduce((a, b) => a + b, 0) / known.length;
      const t = data.t && data.t[known.length];
      if (!t) continue;
      const deviation = Math.sqrt(known.reduce((sum, value) => sum + (value - mean[i]) ** 2, 0) / (known.length - 1));
      low[i] = mean[i] - t * deviation / Math.sqrt(known.length);
      high[i] = mean[i] + t * deviation / Math.sqrt(known.length);
    }
    return { mean, low, high, band: low.some((value) => value !== null) };
  };
  const gaps = (member) => Array.from(member, (value) => (Number.isNaN(value) ? null : value));

  // uPlot's data and series of a panel: raw lines, then for each line its mean and, where there is one, its band.
  const built = (panel) => {
    const lines = linesOf(panel), rows = [x], series = [{}], bands = [], means = [];
    const raw = lines.reduce((sum, line) => sum + line.members.length, 0);
    for (const line of lines) {
      const colour = onPaper(line.colour), single = line.members.length === 1;
      if (single || state.seeds) {
        for (const member of line.members) {
          const few = member.reduce((sum, value) => sum + !Number.isNaN(value), 0) < x.length / 2 || x.length < 40;
          rows.push(gaps(member));
          series.push({ stroke: colour, width: 1, alpha: sweep ? Math.max(0.1, 0.7 / Math.sqrt(raw)) : 0.55, spanGaps: true,
            points: { show: single && few, size: 4, fill: colour } });
        }
      }
      const made = summary(line.members, panel.raw ? 1 : state.window);
      rows.push(made.mean);
      means.push({ index: rows.length - 1, line });
      series.push({ stroke: colour, width: 2.2, dash: line.dash, spanGaps: true, points: { show: false } });
      if (made.band) {
        rows.push(made.high, made.low);
        series.push({ width: 0, points: { show: false }, spanGaps: true }, { width: 0, points: { show: false }, spanGaps: true });
        bands.push({ series: [rows.length - 2, rows.length - 1], fill: colour.replace(")", " / 0.13)") });
      }
    }
    return { rows, series, bands, means };
  };

  const draw = (panel, host) => {
    const { rows, series, bands, means } = built(panel), chart = { panel, host, rows };
    const axis = { stroke: THEME.faint, grid: { stroke: THEME.line, width: 1 }, ticks: { stroke: THEME.line, size: 4 }, font: "11px system-ui" };
    const readout = el("div", { class: "readout" });
    const plot = el("div", { tabindex: "0", role: "img",
      "aria-label": `${panel.title}: ${means.map((m) => m.line.label || panel.title).join(", ")}. Arrow keys move the cursor.` });
    const read = (u) => {
      const i = u.cursor.idx;
      const parts = means.map(({ index, line }) => {
        let value = i === null || i === undefined ? null : chart.rows[index][i];
        for (let n = i; value === null && n > 0; n--) value = chart.rows[index][n - 1];  // a sparse metric: the last that was recorded
        return el("span", {}, coloured(el("i", { class: "swatch" }), line), `${line.label || ""} `, el("b", {}, i === null || i === undefined ? "" : show(value, 4)));
      });
      fill(readout, i === null || i === undefined ? null : el("span", {}, "step ", el("b", {}, String(x[i]))), ...parts);
    };
    const u = new uPlot({
      width: Math.max(200, host.clientWidth), height: 190, legend: { show: false }, series, bands,
      scales: { x: { time: false } },
      axes: [{ ...axis, size: 30 }, { ...axis, size: 58, values: (_, splits) => splits.map((value) => show(value)) }],
      cursor: { sync: { key: "steps" }, drag: { x: true, y: false }, points: { show: (self, n) => (means.some((m) => m.index === n) ? undefined : document.createElement("i")) } },
      hooks: {
        setCursor: [read],
        draw: [(self) => {
          const step = markAt();
          if (step === null) return;
          const left = self.valToPos(step, "x", true), { top, height } = self.bbox;
          self.ctx.save();
          self.ctx.strokeStyle = THEME.accent;
          self.ctx.setLineDash([4, 4]);
          self.ctx.beginPath();
          self.ctx.moveTo(left, top);
          self.ctx.lineTo(left, top + height);
          self.ctx.stroke();
          self.ctx.restore();
        }],
      },
    }, rows, plot);
    u.over.addEventListener("click", () => u.cursor.idx !== null && u.cursor.idx !== undefined && onStep(x[u.cursor.idx]));
    plot.addEventListener("keydown", (event) => {
      const by = { ArrowLeft: -1, ArrowRight: 1, Home: -Infinity, End: Infinity }[event.key];
      if (event.key === "Enter" && u.cursor.idx !== null) onStep(x[u.cursor.idx]);
      if (by === undefined) return;
      event.preventDefault();
      event.stopPropagation();
      const now = u.cursor.idx ?? 0, next = Math.max(0, Math.min(x.length - 1, now + by));
      u.setCursor({ left: u.valToPos(x[next], "x"), top: u.over.clientHeight / 2 }, true, true);
    });
    const extra = state.panels.indexOf(panel) >= data.panels.length;
    fill(host, el("h3", {}, panel.title), readout, plot,
      extra ? el("button", { type: "button", class: "remove", title: "remove this curve", onclick: () => remove(panel) }, "×") : null);
    read(u);
    return Object.assign(chart, { u, read });
  };

  const remove = (panel) => {
    state.panels.splice(state.panels.indexOf(panel), 1);
    redraw();
  };

  const coloured = (swatch, { colour, dash }) => {
    swatch.style.borderTopColor = onPaper(colour);
    swatch.style.borderTopStyle = dash.length ? "dashed" : "solid";
    return swatch;
  };

  const redraw = () => {
    at("arms").querySelectorAll(".swatch").forEach((swatch, n) => coloured(swatch, data.arms[n]));
    for (const { u } of charts) {
      sync.unsub(u);
      u.destroy();
    }
    const hosts = state.panels.map((panel) => el("div", { class: "chart", "data-title": panel.title }));
    fill(at("charts"), ...hosts);  // in the page first, so that they have a width
    charts = state.panels.map((panel, n) => draw(panel, hosts[n]));
  };

  const smooth = (window) => {
    state.window = window;
    at("smoothing-said").value = window === 1 ? "off" : `${window} steps`;
    for (const chart of charts) {
      chart.rows = built(chart.panel).rows;
      chart.u.setData(chart.rows, false);
      chart.u.redraw();
      chart.read(chart.u);
    }
  };

  // Every number of a panel, a row a step; of a sweep a column a run.
  const tabulate = (panel) => {
    const host = at("chart-table");
    if (!panel) return fill(host);
    const heads = sweep ? names : panel.lines.map(([, label]) => label || panel.title);
    const mine = sweep ? values(panel.lines[0][0]) : panel.lines.map(([key]) => values(key)[0]);
    const rows = [];
    x.forEach((step, i) => {
      const cells = mine.map((member) => (member ? member[i] : NaN));
      if (cells.some((value) => !Number.isNaN(value))) rows.push(el("tr", {}, el("td", {}, String(step)), ...cells.map((value) => el("td", {}, show(value, 5)))));
    });
    fill(host, el("h3", {}, panel.title), el("div", { class: "number-table", tabindex: "0" }, el("table", {},
      el("thead", {}, el("tr", {}, el("th", {}, "step"), ...heads.map((head) => el("th", {}, head)))), el("tbody", {}, ...rows))));
  };

  const start = () => {
    at("smoothing").value = state.window;
    at("smoothing-said").value = `${state.window} steps`;
    at("smoothing").addEventListener("input", (event) => smooth(Number(event.target.value)));
    at("seeds-control").hidden = !sweep;
    at("seeds").addEventListener("change", (event) => { state.seeds = event.target.checked; redraw(); });
    const shown = new Set(data.panels.flatMap((panel) => panel.lines.map(([key]) => key)));
    const others = Object.keys(data.curves.metrics).filter((key) => !shown.has(key)).sort();
    fill(at("more"), el("option", { value: "" }, others.length ? "choose a metric" : "all are shown"), ...others.map((key) => el("option", { value: key }, key)));
    at("more").disabled = !others.length;
    at("more").addEventListener("change", (event) => {
      add(event.target.value);
      event.target.value = "";
    });
    fill(at("tabulate"), el("option", { value: "" }, "none"), ...data.panels.map((panel, n) => el("option", { value: n }, panel.title)));
    at("tabulate").addEventListener("change", (event) => tabulate(event.target.value === "" ? null : data.panels[Number(event.target.value)]));
    fill(at("arms"), ...(data.arms || []).map((arm) => el("button", { type: "button", "aria-pressed": "true", onclick: (event) => {
      state.arms.has(arm.arm) ? state.arms.delete(arm.arm) : state.arms.add(arm.arm);
      event.currentTarget.setAttribute("aria-pressed", String(state.arms.has(arm.arm)));
      redraw();
    } }, el("i", { class: "swatch" }), arm.label)));
    redraw();
    let waiting = 0;
    new ResizeObserver(() => {
      cancelAnimationFrame(waiting);
      waiting = requestAnimationFrame(() => charts.forEach(({ u, host }) => {
        if (host.clientWidth && Math.abs(host.clientWidth - u.width) > 1) u.setSize({ width: host.clientWidth, height: 190 });
      }));
    }).observe(at("charts"));
  };

  const add = (key) => {
    if (!key) return;
    state.panels.push({ title: key, lines: [[key, ""]] });
    redraw();
  };

  // To the panel of a metric, made if there is none.
  const go = (key) => {
    let place = state.panels.findIndex((panel) => panel.lines.some(([name]) => name === key));
    if (place < 0 && data.curves.metrics[key]) {
      add(key);
      place = state.panels.length - 1;
    }
    if (place < 0) return;
    const host = charts[place].host;
    host.scrollIntoView({ block: "center" });
    host.querySelector("[tabindex]").focus({ preventScroll: true });
  };
  const has = (key) => key in data.curves.metrics;
  const mark = () => charts.forEach(({ u }) => u.redraw(false, false));
  return { start, redraw, mark, go, has, charts: () => charts.map(({ u }) => u) };
};
