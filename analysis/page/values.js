"use strict";
// Columns back into numbers, numbers into text, values into colours. Every text becomes a text node: nothing here parses HTML.

const el = (tag, given = {}, ...children) => {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(given)) {
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (name === "class") made.className = value;
    else if (value !== undefined && value !== null && value !== false) made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
};
const at = (id) => document.getElementById(id);
const fill = (node, ...children) => (node.replaceChildren(...children.filter((child) => child !== null)), node);

// ------------------------------------------------------------------ columns (embed.column)

const bytes = (text) => {
  const raw = atob(text), made = new Uint8Array(raw.length);
  for (let i = 0; i < raw.length; i++) made[i] = raw.charCodeAt(i);
  return made.buffer;
};

const halves = () => {
  const made = new Float32Array(65536);
  for (let h = 0; h < 65536; h++) {
    const sign = h & 0x8000 ? -1 : 1, exponent = (h >> 10) & 31, fraction = h & 1023;
    made[h] = exponent === 31 ? (fraction ? NaN : sign * Infinity)
      : sign * (exponent ? 2 ** (exponent - 15) * (1 + fraction / 1024) : 2 ** -24 * fraction);
  }
  return made;
};
let HALVES = null;

const column = (packed) => {
  if (!packed) return null;
  const buffer = bytes(packed.data);
  if (packed.kind === "single") return new Float32Array(buffer);
  if (packed.kind !== "half") return new { u1: Uint8Array, u2: Uint16Array, u4: Uint32Array }[packed.kind](buffer);
  HALVES = HALVES || halves();
  return Float32Array.from(new Uint16Array(buffer), (h) => HALVES[h] * packed.scale);
};

// ------------------------------------------------------------------ numbers as text

const show = (value, digits = 3) => {
  if (value === null || value === undefined || Number.isNaN(value)) return "–";
  const size = Math.abs(value);
  const text = size !== 0 && (size < 1e-3 || size >= 1e6) ? value.toExponential(digits - 1).replace("e+", "e")
    : Number.isInteger(value) ? String(value) : size >= 1000 ? value.toFixed(0) : String(Number(value.toPrecision(digits)));
  return text.replace(/-/g, "−");
};
const signed = (value, digits) => (value > 0 ? "+" : "") + show(value, digits);

// Mean of the last `window` values that there are; NaN where there is no value.
const smoothed = (values, window) => {
  const made = new Float64Array(values.length).fill(NaN);
  const last = [];
  let sum = 0;
  for (let i = 0; i < values.length; i++) {
    if (Number.isNaN(values[i])) continue;
    last.push(values[i]);
    sum += values[i];
    if (last.length > window) sum -= last.shift();
    made[i] = sum / last.length;
  }
  return made;
};

const quantile = (values, share) => {
  const sorted = Float64Array.from(values.filter((value) => !Number.isNaN(value))).sort();
  return sorted.length ? sorted[Math.min(sorted.length - 1, Math.floor(share * sorted.length))] : NaN;
};

// ------------------------------------------------------------------ colours

const rgb = (hex) => [1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16));
const css = (parts) => `rgb(${parts.map(Math.round).join(" ")})`;
const mixed = (a, b, share) => a.map((part, i) => part + (b[i] - part) * share);
const luminance = (parts) => {
  const [r, g, b] = parts.map((part) => (part / 255 <= 0.04045 ? part / 255 / 12.92 : ((part / 255 + 0.055) / 1.055) ** 2.4));
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
};
const contrast = (a, b) => {
  const [high, low] = [luminance(a), luminance(b)].sort((x, y) => y - x);
  return (high + 0.05) / (low + 0.05);
};
// Black or white, whichever is the easier to read on it.
const inkOn = (parts) => (contrast(parts, [0, 0, 0]) > contrast(parts, [255, 255, 255]) ? "#000" : "#fff");
// What the style sheet says now, read once a theme: asking again and again is slow.
const THEME = { dark: false };
const readTheme = () => {
  const root = document.documentElement, probe = at("title"), chosen = root.dataset.theme;
  THEME.dark = chosen ? chosen === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  for (const name of ["faint", "line", "accent", "mark"]) {
    probe.style.color = `var(--${name})`;
    THEME[name] = getComputedStyle(probe).color;
  }
  probe.style.color = "";
};
// A line's colour, lighter or darker until it stands off the paper.
const onPaper = (hex) => {
  const paper = rgb(THEME.dark ? "#14171c" : "#ffffff"), towards = THEME.dark ? [255, 255, 255] : [0, 0, 0];
  let parts = rgb(hex);
  for (let n = 0; n < 20 && contrast(parts, paper) < (THEME.dark ? 3 : 1.6); n++) parts = mixed(parts, towards, 0.12);
  return css(parts);
};

// One hue from paper to strong (Blues), and orange to purple through paper (PuOr): both read by colour-blind eyes.
const ONE = { light: ["#ffffff", "#d6e6f4", "#abcfe6", "#6aaed6", "#3787c0", "#105ba4", "#08306b"],
  dark: ["#14171c", "#17304d", "#1c4a7c", "#2a6fb0", "#4f97d6", "#8cc0ee", "#e0f0ff"] };
const TWO = { light: ["#9e4a04", "#e08214", "#fdb863", "#fee0b6", "#ffffff", "#d8daeb", "#b2abd2", "#8073ac", "#432371"],
  dark: ["#ffb95e", "#cf7d1c", "#8a4f12", "#4a2f15", "#14171c", "#2f2a4d", "#544a86", "#8476c4", "#cdbfff"] };
const along = (stops, share) => {
  const place = Math.max(0, Math.min(1, share)) * (stops.length - 1), low = Math.min(stops.length - 2, Math.floor(place));
  return mixed(rgb(stops[low]), rgb(stops[low + 1]), place - low);
};
// Token classes, as in the figures: blue for A > 0, rust for A < 0; dark for probable, pale for improbable.
const CLASSES = ["PA&HP", "PA&LP", "NA&HP", "NA&LP", "A = 0"];
const CLASS_COLOURS = ["#0B4F8A", "#9CCBEE", "#A8431B", "#F7C09A", null];
const LINE_COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#000000", "#E69F00", "#56B4E9"];
const LINE_DASHES = [[], [10, 4], [2, 2], [14, 4, 2, 4], [6, 2, 2, 2, 2, 2]];
