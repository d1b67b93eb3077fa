// What all sections share: elements, numbers, the data, the theme. Text reaches the page by textContent alone.
const COLORS = ["#2f6fde", "#d9650f", "#1f9a6d", "#b04bc4", "#c8a000", "#19a3b8", "#d4447a", "#7d7d7d"];
const $ = (id) => document.getElementById(id);
const data = JSON.parse($("data").textContent);
const color = (number) => COLORS[number % COLORS.length];

/** An element with attributes, listeners (on...) and children: elements, texts, null for none. */
function h(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "style") Object.assign(element.style, value);
    else if (value !== null && value !== false) element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined).map((child) => (child instanceof Node ? child : String(child))));
  return element;
}

function svg(tag, attributes, text) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  if (text !== undefined) element.textContent = text;
  return element;
}

function short(value, digits = 3) {
  if (value === null || value === undefined || Number.isNaN(value)) return "–";
  if (typeof value !== "number") return String(value);
  if (Number.isInteger(value)) return value.toLocaleString("en");
  const size = Math.abs(value);
  return size >= 1e5 || size < 1e-4 ? value.toExponential(2) : Number(value.toPrecision(size >= 1000 ? 5 : digits)).toLocaleString("en", { maximumFractionDigits: 6 });
}

const share = (value) => (value === null || value === undefined ? "–" : value.toFixed(3));

function seconds(value) {
  if (value === null || value === undefined) return "–";
  if (value < 120) return `${value.toFixed(0)} s`;
  return value < 7200 ? `${Math.floor(value / 60)} min ${Math.round(value % 60)} s` : `${(value / 3600).toFixed(1)} h`;
}

/** A table of texts and elements; cells of columns beyond the first are values unless `plain`. */
function table(head, rows, plain = false) {
  const place = (number) => (number && !plain ? { class: "value" } : {});
  return h("table", {}, h("thead", {}, h("tr", {}, head.map((cell, i) => h("th", { scope: "col", ...place(i) }, cell)))),
    h("tbody", {}, rows.map((row) => h("tr", {}, row.map((cell, i) => (cell instanceof Node && cell.tagName === "TD" ? cell : h("td", place(i), cell)))))));
}

/** What gzip in base64 holds; `#name` stands for the element of that name. */
async function unpack(text) {
  const packed = text.startsWith("#") ? $(text.slice(1)).textContent : text;
  const bytes = Uint8Array.from(atob(packed), (letter) => letter.charCodeAt(0));
  return JSON.parse(await new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"))).text());
}

const themeListeners = [];
const systemDark = window.matchMedia("(prefers-color-scheme: dark)");
let theme = "auto";
const isDark = () => theme === "dark" || (theme === "auto" && systemDark.matches);

function applyTheme() {
  document.documentElement.dataset.theme = isDark() ? "dark" : "light";
  $("theme").textContent = `theme: ${theme}`;
  themeListeners.forEach((listener) => listener());
}

function startTheme() {
  const order = ["auto", "light", "dark"];
  $("theme").addEventListener("click", () => { theme = order[(order.indexOf(theme) + 1) % 3]; applyTheme(); });
  systemDark.addEventListener("change", applyTheme);
  applyTheme();
}
