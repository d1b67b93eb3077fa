// Plots that are drawn when they come into view, and again where the theme or their data change; keys of lines.
const DASHES = ["solid", "dash", "dot", "dashdot"];
const drawn = new Map(), waiting = new Map();
const seen = new IntersectionObserver((entries) => entries.filter((entry) => entry.isIntersecting).forEach((entry) => { seen.unobserve(entry.target); place(entry.target); }), { rootMargin: "300px" });
themeListeners.push(drawAgain);

/** The place of a plot has its height before it is drawn: what comes below does not move while someone reads it. */
function watchPlot(element, make) {
  const made = make();
  element.hidden = made === null;
  element.style.minHeight = made?.layout.height ? `${made.layout.height + 18}px` : "";
  waiting.set(element, make);
  seen.observe(element);
}
function place(element) { const make = waiting.get(element); drawn.set(element, make); draw(element, make); }

function draw(element, make) {
  const made = make();
  element.hidden = made === null;
  if (made !== null) Plotly.react(element, made.traces, { ...look(), ...made.layout }, { displaylogo: false, responsive: true, displayModeBar: false });
}

function drawAgain() { drawn.forEach((make, element) => draw(element, make)); }

function look() {
  const style = getComputedStyle(document.documentElement), ink = style.getPropertyValue("--quiet"), line = style.getPropertyValue("--line"), panel = style.getPropertyValue("--panel");
  const axis = { gridcolor: line, linecolor: line, zerolinecolor: line, automargin: true, fixedrange: false };
  return { paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", font: { color: ink, size: 11, family: "system-ui, sans-serif" }, margin: { l: 44, r: 10, t: 6, b: 30 },
    xaxis: { ...axis, title: { text: "step", standoff: 4 } }, yaxis: { ...axis }, hovermode: "x unified", hoverlabel: { bgcolor: panel, bordercolor: line, font: { color: style.getPropertyValue("--ink") } },
    showlegend: false, legend: { orientation: "h", y: -0.22, x: 0 }, dragmode: "zoom" };
}

function lineKey(name, paint, dashes) {
  const picture = svg("svg", { "aria-hidden": "true" });
  picture.append(svg("line", { x1: 0, x2: 22, y1: 4, y2: 4, stroke: paint, "stroke-width": 2.5, "stroke-dasharray": dashes }));
  return h("span", {}, picture, name);
}
