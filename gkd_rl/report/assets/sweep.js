// A sweep: settings against each other, the frontier, what the swept keys do, curves over the seeds, runs and failures.
const settings = data.settings;
const hiddenSettings = new Set();
const paint = (number) => color(number);
const dashOf = (number) => DASHES[Math.floor(number / COLORS.length) % DASHES.length];
const TITLES = { accuracy: "greedy accuracy, held out", reward: "mean reward of samples", divergence: "divergence to teacher", reverse_kl: "KL(student‖teacher)", length: "tokens per answer" };
const HEADS = { accuracy: "accuracy", reward: "reward", divergence: "divergence", length: "tokens" };
const headOf = (name) => HEADS[name] ?? titleOf(name);
const titleOf = (name) => TITLES[name] ?? name.replaceAll("_", " ");
/** Plotly reads tags and entities in names and hover texts. */
const plain = (text) => String(text).replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll("%{", "% {");
const shownSettings = () => settings.map((setting, number) => [setting, number]).filter(([, number]) => !hiddenSettings.has(number));

function start() {
  startTheme();
  showFailures();
  showSettings();
  showChoice();
  showFrontier();
  showSwept();
  showCurves();
  showRuns();
}

function showFailures() {
  $("warnings").replaceChildren(...data.failed.map((run) => h("div", { class: "warning" }, h("strong", {}, `${run.label} seed=${run.seed} failed: `), run.said, h("span", { class: "quiet" }, `  ${run.folder}/output.log`))));
}

const within = ([mean, low, high]) => (mean === null ? "–" : low === null ? share(mean) : `${share(mean)} ±${share((high - low) / 2)}`);
const signed = (value) => `${value < 0 ? "−" : "+"}${Math.abs(value).toFixed(3)}`;

/** Less than the best: whether zero lies outside the interval of the difference. */
function difference(setting) {
  const [mean, low, high] = setting.difference;
  if (setting.best) return h("td", { class: "value best" }, "the best");
  if (mean === null) return h("td", { class: "value" }, "–");
  const apart = low > 0 || high < 0;
  return h("td", { class: "value" }, `${signed(mean)} [${signed(low)}, ${signed(high)}] `, h("span", { class: `chip ${apart ? "bad" : ""}` }, apart ? "significant" : "not significant"));
}

const dot = (number) => h("span", { class: "dot", style: { background: paint(number), display: "inline-block", marginRight: "7px" } });

function showSettings() {
  const count = settings.reduce((sum, setting) => sum + setting.runs.length, 0);
  $("about").textContent = `${data.folder}: ${count} runs of ${settings.length} settings${data.failed.length ? `, ${data.failed.length} failed` : ""}; the best by ${data.score}: ${settings.find((setting) => setting.best).label}`;
  const [first, ...others] = data.figures, value = (setting, name) => h("td", { class: setting.best && name === data.score ? "value best" : "value" }, within(setting.figures[name]));
  const rows = settings.map((setting, number) => [
    h("td", { class: "key name" }, dot(number), setting.label, setting.front.accuracy ? " ★" : ""),
    setting.runs.length, value(setting, first), difference(setting), ...others.map((name) => value(setting, name))]);
  $("settings").replaceChildren(table(["setting", "seeds", headOf(first), "less the best's", ...others.map(headOf)], rows));
  $("notes").textContent = "Means over the seeds with 95% intervals (Student's t). Differences: the same seeds and held-out examples, both drawn anew (paired bootstrap), 95%; significant: 0 lies outside. The best one was chosen by these numbers, so an interval that just misses 0 is weak evidence. ★ no other setting is as near to the teacher and as accurate.";
}

/** A button for each setting, which draws it or leaves it out. */
function showChoice() {
  $("chosen").replaceChildren(...settings.map((setting, number) => h("button", { type: "button", "aria-pressed": "true", onclick: (event) => {
    const leave = !hiddenSettings.delete(number);
    if (leave) hiddenSettings.add(number);
    event.currentTarget.setAttribute("aria-pressed", String(!leave));
    drawAgain();
  } }, dot(number), setting.label)));
}

function figureOf(title, about, plot) {
  return h("figure", { class: "chart", style: { margin: 0 } }, h("h3", {}, title), h("p", { class: "quiet" }, about), plot);
}

function chart(place, title, about, make) {
  const plot = h("div", { class: "plot", "data-chart": title });
  place.append(figureOf(title, about, plot));
  watchPlot(plot, make);
}

function showFrontier() {
  for (const name of ["accuracy", "reward"]) {
    if (settings.some((setting) => setting.figures[name][0] !== null && setting.figures.reverse_kl[0] !== null))
      chart($("frontier-charts"), `Frontier of ${name}`, `${titleOf(name)} against KL(student‖teacher) per token; small marks are seeds, rings the settings that no other dominates`, () => frontierChart(name));
  }
  $("frontier").hidden = !$("frontier-charts").children.length;
}

function frontierChart(name) {
  const base = look(), front = [], traces = [];
  for (const [setting, number] of shownSettings()) {
    const x = setting.figures.reverse_kl[0], y = setting.figures[name][0];
    if (x === null || y === null) continue;
    if (setting.front[name]) front.push([x, y]);
    const runs = setting.runs.filter((run) => run.reverse_kl !== null && run[name] !== null), common = { mode: "markers", name: plain(setting.label) };
    traces.push({ ...common, x: runs.map((run) => run.reverse_kl), y: runs.map((run) => run[name]), marker: { size: 5, color: paint(number), opacity: 0.5 }, text: runs.map((run) => `seed ${run.seed}`), hovertemplate: `${plain(setting.label)}, %{text}<br>%{x:.4g}, %{y:.3f}<extra></extra>` });
    traces.push({ ...common, x: [x], y: [y], marker: { size: 11, color: paint(number) }, hovertemplate: `${plain(setting.label)}<br>%{x:.4g}, %{y:.3f}<extra></extra>` });
  }
  front.sort(([a], [b]) => a - b);
  traces.push({ x: front.map(([x]) => x), y: front.map(([, y]) => y), mode: "lines+markers", name: "Pareto", line: { color: base.font.color, width: 1, dash: "dash" }, marker: { size: 18, symbol: "circle-open", color: base.font.color, line: { width: 2 } }, hoverinfo: "skip" });
  return { traces, layout: { hovermode: "closest", xaxis: { ...base.xaxis, type: "log", title: { text: "KL(student‖teacher)", standoff: 4 } }, yaxis: { ...base.yaxis, title: { text: name } } } };
}

/** Settings that differ in one key alone are joined. */
function showSwept() {
  for (const { key, log } of data.keys) for (const name of ["accuracy", "reward"])
    chart($("swept-charts"), `${name} by ${key}`, `${titleOf(name)}; bars are 95% intervals over the seeds`, () => sweptChart(key, log, name));
  $("swept").hidden = !data.keys.length;
}

function sweptChart(key, log, name) {
  const base = look(), lines = new Map();
  for (const [setting, number] of shownSettings()) {
    if (setting.figures[name][0] === null) continue;
    const others = JSON.stringify(Object.entries(setting.values).filter(([other]) => other !== key));
    if (!lines.has(others)) lines.set(others, []);
    lines.get(others).push([setting, number]);
  }
  const traces = [...lines.entries()].map(([others, points]) => {
    const sorted = points.sort(([a], [b]) => a.values[key] - b.values[key]), at = ([setting]) => setting.figures[name];
    const half = sorted.map((point) => { const [mean, low] = at(point); return low === null ? 0 : mean - low; });
    const label = JSON.parse(others).map(([other, value]) => `${other.split(".").at(-1)}=${typeof value === "string" ? value : JSON.stringify(value)}`).join("  ") || key;
    return { x: sorted.map(([setting]) => setting.values[key]), y: sorted.map((point) => at(point)[0]), mode: "lines+markers", name: plain(label), line: { color: paint(sorted[0][1]), width: 2 }, marker: { size: 7 },
      error_y: { type: "data", array: half, color: paint(sorted[0][1]), thickness: 1.2, width: 4 }, hovertemplate: "%{y:.3f}" };
  });
  const values = [...new Set(settings.map((setting) => setting.values[key]))].sort((a, b) => a - b), ticks = values.length > 9 ? {} : { tickvals: values, ticktext: values.map(String) };
  return { traces, layout: { showlegend: traces.length > 1, xaxis: { ...base.xaxis, ...ticks, type: log ? "log" : "linear", title: { text: plain(key), standoff: 4 } }, yaxis: { ...base.yaxis, title: { text: name } } } };
}

const CURVE_TITLES = { reward: "Reward", eval_accuracy: "Held-out accuracy", divergence: "Divergence to the teacher", reverse_kl: "KL to the teacher", entropy: "Entropy", length: "Length", loss: "Loss", grad_norm: "Gradient norm" };

function showCurves() {
  for (const [name, title] of Object.entries(CURVE_TITLES))
    if (settings.some((setting) => setting.curves[name])) chart($("charts"), title, "mean over the seeds", () => curveChart(name));
  $("bands").addEventListener("change", drawAgain);
}

function curveChart(name) {
  const traces = [];
  for (const [setting, number] of shownSettings()) {
    const curve = setting.curves[name];
    if (!curve) continue;
    const edge = (y) => ({ x: curve.step, y, mode: "lines", line: { width: 0 }, hoverinfo: "skip" });
    if ($("bands").checked && setting.runs.length > 1) traces.push(edge(curve.low), { ...edge(curve.high), fill: "tonexty", fillcolor: `${paint(number)}2b` });
    traces.push({ x: curve.step, y: curve.mean, mode: curve.step.length < 12 ? "lines+markers" : "lines", name: plain(setting.label), line: { color: paint(number), width: 2, dash: dashOf(number) }, hovertemplate: "%{y:.4g}" });
  }
  return { traces, layout: {} };
}

function showRuns() {
  const name = (run) => (run.report ? h("a", { href: encodeURI(run.report) }, run.folder) : run.folder);
  const rows = settings.flatMap((setting) => setting.runs.map((run) => [h("td", { class: "key name" }, name(run)), h("td", { class: "name" }, setting.label), run.seed, ...data.figures.map((figure) => share(run[figure])), seconds(run.seconds)]));
  const failures = data.failed.map((run) => [h("td", { class: "key name" }, run.folder), h("td", { class: "name" }, run.label), run.seed, ...data.figures.map(() => "–"), h("td", {}, h("span", { class: "chip bad" }, "failed"))]);
  $("run-table").replaceChildren(table(["run", "setting", "seed", ...data.figures.map(headOf), "time"], [...rows, ...failures]));
}
