// The page: what needs no drawing, the theme, the keys, the start.

const KEYS = [["n / p", "next, previous fork of the response"], ["← → ↑ ↓", "token by token, line by line (in a response); the cursor (in a chart)"],
  ["Home / End", "first, last token; first, last step of a chart"], ["j / k", "next, previous response of the group"], ["[ / ]", "step before, step after"],
  ["c / C", "next, previous colouring"], ["t", "tokens as a table"], ["d", "theme: light, dark, as the system has it"], ["?", "this list"]];

const begin = () => {
  const data = JSON.parse(at("data").textContent);
  at("title").textContent = data.title;
  readTheme();
  glance(data);

  let microscope = null;
  const curves = Curves(data, { markAt: () => (microscope ? microscope.step() : null), onStep: (step) => microscope && microscope.goNear(step) });
  notes(data, curves);
  curves.start();
  if (data.tokens.responses) {
    microscope = Microscope(data, { onStep: () => curves.mark() });
    microscope.start();
  } else {
    at("no-tokens").hidden = false;
    at("no-tokens").textContent = data.without || "No token record could be read.";
  }
  wrote(data);
  ledgerTables(data);
  at("config-text").textContent = data.config || "";
  at("config").hidden = !data.config;
  document.querySelectorAll("nav a").forEach((link) => { link.hidden = at(link.hash.slice(1)).hidden; });

  // ---------------------------------------------------------------- theme, print, keys

  const themes = ["auto", "light", "dark"];
  let theme = 0;
  const repaint = () => {
    readTheme();
    curves.redraw();
    microscope?.redraw();
  };
  const turn = () => {
    theme = (theme + 1) % themes.length;
    if (theme) document.documentElement.dataset.theme = themes[theme];
    else delete document.documentElement.dataset.theme;
    at("theme").textContent = `theme: ${themes[theme]}`;
    repaint();
  };
  at("theme").addEventListener("click", turn);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", repaint);
  // Paper is white, whatever the screen is.
  addEventListener("beforeprint", () => {
    document.documentElement.dataset.theme = "light";
    document.querySelectorAll("details.table").forEach((folded) => { folded.open = true; });
    repaint();
  });
  addEventListener("afterprint", () => {
    if (theme) document.documentElement.dataset.theme = themes[theme];
    else delete document.documentElement.dataset.theme;
    repaint();
  });
  fill(at("help-keys"), ...KEYS.map(([key, what]) => el("tr", {}, el("td", {}, el("kbd", {}, key)), el("td", {}, what))));
  at("help-keys").className = "text";
  at("keys").addEventListener("click", () => at("help").showModal());
  const keys = { ...(microscope ? microscope.keys : {}), d: turn, "?": () => at("help").showModal() };
  addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || at("help").open || event.target.tagName === "SELECT") return;
    if (keys[event.key]) {
      event.preventDefault();
      keys[event.key]();
    }
  });
  requestAnimationFrame(() => {
    document.documentElement.dataset.ready = String(Math.round(performance.now()));
  });
  return { data, curves, microscope };
};

const LONG = 10;  // rows, beyond which a table is folded
const tableOf = (given, text = false) => {
  const made = grid(given, text);
  return given.rows.length > LONG ? el("details", { class: "table" }, el("summary", {}, el("h3", {}, given.title), `, ${given.rows.length} rows`), made)
    : el("div", {}, el("h3", {}, given.title), made);
};
const grid = (given, text) => el("div", { class: "wide" }, el("table", { class: text ? "text" : "" }, given.caption ? el("caption", {}, given.caption) : null,
    el("thead", {}, el("tr", {}, ...given.head.map((head) => el("th", { scope: "col" }, head)))),
    el("tbody", {}, ...given.rows.map((row) => el("tr", {}, ...row.map((cell) => el("td", {}, cell)))))));

const glance = (data) => {
  for (const [name, value] of data.facts) at("facts").append(el("dt", {}, name), el("dd", {}, value));
  at("command").textContent = data.command;
  at("asked-title").textContent = data.kind === "sweep" ? "What every arm asks for beyond the defaults" : "What was asked, where it differs from the defaults";
  at("asked-title").hidden = !data.asked.length;
  at("asked").className = "text";
  fill(at("asked"), ...data.asked.map((row) => el("tr", { title: row.doc }, el("td", {}, row.key), el("td", {}, row.value),
    el("td", { class: "facts" }, row.default && row.default !== row.value ? `default ${row.default}` : ""))));
  fill(at("tables"), ...data.tables.map((table) => tableOf(table, table.title === "Runs")));
  fill(at("thinned"), ...data.thinned.map((text) => el("li", {}, text)));
};

const notes = (data, curves) => {
  const words = { bad: "✗ ", look: "! ", fine: "✓ " };
  const item = (note) => el("li", { class: note.level },
    el("span", { class: "word" }, `${words[note.level]}${note.what}`), note.number,
    note.metric && curves.has(note.metric) ? el("button", { type: "button", onclick: () => curves.go(note.metric) }, "curve") : null,
    note.level === "fine" ? null : el("span", { class: "why" }, note.why),
    note.runs.length > 1 || (note.runs.length && note.level !== "fine") ? el("details", {}, el("summary", {}, "which"), ...note.runs.map(([run, number]) => el("div", {}, `${run}: ${number}`))) : null);
  const raised = data.notes.filter((note) => note.level !== "fine");
  const fine = data.notes.filter((note) => note.level === "fine").map(item);
  fill(at("notes"), ...(raised.length ? [] : [el("li", { class: "fine" }, "Nothing stands out.")]), ...raised.map(item),
    ...(data.kind === "run" || !fine.length ? fine : [el("li", { class: "fine" }, el("details", {}, el("summary", {}, "what was looked at and found in order"),
      el("ul", { class: "notes" }, ...fine)))]));
};

const wrote = (data) => {
  if (!data.seen.length) {
    at("no-completions").hidden = false;
    return;
  }
  at("completions").hidden = false;
  const ids = [...new Set(data.seen.map((row) => row.id))];
  const many = new Set(data.seen.map((row) => row.run)).size > 1;
  fill(at("seen-prompt"), ...ids.map((id) => el("option", { value: id }, id)));
  const draw = () => {
    const rows = data.seen.filter((row) => row.id === at("seen-prompt").value);
    fill(at("seen-head"), el("div", { class: "prompt" }, String(rows[0].prompt), el("div", {}, `answer: ${rows[0].answer}`)));
    fill(at("seen-steps"), ...rows.map((row) => el("div", { class: "pane" },
      el("h3", {}, `${many ? `${row.run}, ` : ""}after step ${row.step}: ${row.verdicts.filter((one) => one === "correct").length} of ${row.verdicts.length} right`),
      ...row.completions.slice(0, row.verdicts.length).map((text, n) => el("pre", { class: "completion" },
        el("span", { class: "facts" }, `${row.verdicts[n] === "correct" ? "✓" : "✗"} ${row.verdicts[n].replace("_", " ")}, ${row.tokens[n]} tokens\n`), text)))));
  };
  at("seen-prompt").addEventListener("change", draw);
  draw();
};

const ledgerTables = (data) => {
  const ledger = data.ledger;
  if (!ledger) {
    at("ledger").hidden = true;
    return;
  }
  fill(at("ledger-tables"), ...(ledger.why ? [el("p", { class: "facts" }, ledger.why)] : []),
    ...(ledger.tables || []).map((table) => tableOf(table)), ...(ledger.facts || []).map((text) => el("p", { class: "facts" }, text)));
};

const SHOWN = begin();  // for a look from the browser's console
