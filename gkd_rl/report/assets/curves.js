// Curves over the steps, smoothed, with bands; and the charts of evaluation and cost. Drawn when they come into view.
const CHARTS = [
  ["Loss", ["loss", "reward_loss", "divergence_loss", "cross_entropy_loss"], "what is minimised, and its terms"],
  ["Reward", ["reward", "reward_*"], "mean over the sampled answers, and its components"],
  ["Held-out accuracy", ["eval_accuracy"], "greedy answers, during training"],
  ["Divergence to the teacher", ["divergence"], "per token, on the student's own answers"],
  ["KL to the teacher", ["forward_kl", "reverse_kl", "reference_kl"], "per token, both directions"],
  ["Agreement with the teacher", ["teacher_top1_agreement"], "share of tokens with the same likeliest choice"],
  ["Gradient norm", ["grad_norm"], "before clipping"],
  ["Gradients of the two terms", ["reward_grad_norm", "divergence_grad_norm"], "root mean square at the hidden states", "log"],
  ["Gradient interference", ["grad_cosine", "opposed_share"], "cosine of the terms' gradients; share of tokens where they oppose each other"],
  ["Entropy", ["entropy"], "of the student, nats per token"],
  ["Length", ["length"], "tokens per answer"],
  ["Truncation", ["truncated"], "share of answers cut off at the limit"],
  ["Distinct bigrams", ["distinct_2"], "falls where answers go in loops"],
  ["Drift within a step", ["policy_kl"], "KL of the policy that sampled to the one that is trained"],
  ["Clipping", ["clip_low", "clip_high"], "share of tokens whose ratio was clipped"],
  ["Groups without signal", ["rows_without_advantage"], "share of answers whose advantage is 0"],
  ["Padding", ["padding_share"], "share of the micro-batches' tokens"],
  ["Learning rate", ["lr"], ""],
  ["Weights of the terms", ["reward_weight", "divergence_weight"], ""],
];
const NO_COMPONENTS = ["reward_loss", "reward_weight", "reward_grad_norm"];
let smoothing = 0, bands = true, titles = "";

function startCurves() {
  smoothing = runs.some((run) => run.metrics.step.length > 20) ? 0.8 : 0;
  $("smoothing").value = smoothing;
  const widest = Math.max(...runs.map((run) => run.metrics.width));
  $("width").textContent = widest > 1 ? `each point is the mean of ${widest} steps` : "";
  const redraw = () => { smoothing = Number($("smoothing").value); bands = $("bands").checked; $("smoothing-value").textContent = smoothing.toFixed(2); drawAgain(); };
  $("smoothing").addEventListener("input", redraw);
  $("bands").addEventListener("change", redraw);
  $("smoothing-value").textContent = smoothing.toFixed(2);
  showCharts();
  watchPlot($("evaluation-chart"), accuracyChart);
  watchPlot($("phases-chart"), phasesChart);
}

/** Draws what there is to draw, new charts among it. */
function refreshCharts() {
  showCharts();
  for (const [element, make] of waiting) if (element.hidden) element.hidden = make() === null;
  drawAgain();
}

/** The figures of a chart that some run has, other than 0 throughout. */
function figuresOf(names) {
  const all = names.flatMap((name) => (name.endsWith("*") ? components(name.slice(0, -1)) : [name]));
  return [...new Set(all)].filter((name) => runs.some((run) => (series(run, name) ?? []).some((value) => value)));
}

function showCharts() {
  const given = CHARTS.map(([title, names, about, scale]) => [title, figuresOf(names), about, scale]).filter(([, found]) => found.length);
  if (titles && titles === JSON.stringify(given)) return;
  titles = JSON.stringify(given);
  for (const element of drawn.keys()) if ($("charts").contains(element)) { Plotly.purge(element); drawn.delete(element); waiting.delete(element); }
  const shown = given.map(([title, found, about, scale]) => {
    const plot = h("div", { class: "plot", "data-chart": title });
    watchPlot(plot, () => curveChart(found, scale));
    return h("figure", { class: "chart", style: { margin: 0 } }, h("h3", {}, title), h("p", { class: "quiet" }, about), found.length > 1 ? keys(found) : null, plot);
  });
  $("run-keys").replaceChildren(...(runs.length > 1 ? runs.map((run, r) => lineKey(run.name, color(r), "")) : []));
  $("charts").replaceChildren(...(shown.length ? shown : [h("p", { class: "quiet" }, "No step has been logged yet.")]));
}

/** Which line is which figure: by colour, or by dashes where colours tell the runs apart. */
function keys(names) {
  const patterns = { solid: "", dash: "7 4", dot: "2 3", dashdot: "7 3 2 3" };
  return h("div", { class: "keys" }, names.map((name, n) => (runs.length > 1 ? lineKey(name, "var(--quiet)", patterns[DASHES[n % 4]]) : lineKey(name, color(n), ""))));
}

function components(prefix) {
  const names = [...new Set(runs.flatMap((run) => Object.keys(run.metrics.values)))].filter((name) => name.startsWith(prefix) && !NO_COMPONENTS.includes(name));
  return names.length > 1 ? names : [];
}

/** Exponential moving mean and standard deviation, bias-corrected; gaps stay gaps. */
function smoothed(values, weight) {
  let mass = 0, sum = 0, squares = 0;
  return values.map((value) => {
    if (value === null || value === undefined) return [null, null];
    mass = weight * mass + 1 - weight; sum = weight * sum + (1 - weight) * value; squares = weight * squares + (1 - weight) * value * value;
    const mean = sum / mass;
    return [mean, Math.sqrt(Math.max(0, squares / mass - mean * mean))];
  });
}

function curveChart(names, scale) {
  const several = runs.length > 1, traces = [];
  runs.forEach((run, r) => names.forEach((name, n) => {
    const values = series(run, name);
    if (!values || values.every((value) => value === null)) return;
    const paint = color(several ? r : n), dash = several ? DASHES[n % 4] : "solid", x = run.metrics.step;
    const sparse = values.filter((value) => value !== null).length < values.length / 2;
    const means = smoothed(values, sparse ? 0 : smoothing), label = several ? (names.length > 1 ? `${run.name}: ${name}` : run.name) : name;
    const crowded = several && names.length > 1;
    if (bands && smoothing && !sparse && !crowded && scale !== "log") {
      const edge = (sign) => ({ x, y: means.map(([mean, deviation]) => (mean === null ? null : mean + sign * deviation)), mode: "lines", line: { width: 0 }, hoverinfo: "skip", showlegend: false });
      traces.push(edge(-1), { ...edge(1), fill: "tonexty", fillcolor: `${paint}2b` });
    } else if (smoothing && !sparse && !crowded) traces.push({ x, y: values, mode: "lines", line: { width: 1, color: paint }, opacity: 0.25, hoverinfo: "skip", showlegend: false });
    traces.push({ x, y: means.map(([mean]) => mean), mode: sparse ? "lines+markers" : "lines", connectgaps: sparse, line: { width: 2, color: paint, dash }, name: label, hovertemplate: "%{y:.4g}" });
  }));
  const base = look();
  return { traces, layout: { yaxis: { ...base.yaxis, type: scale ?? "linear" } } };
}

/** Accuracy over the steps with 95% intervals (Wilson's for those during training). */
function accuracyChart() {
  const traces = [];
  runs.forEach((run, r) => {
    const points = [], add = (step, values) => values && points.push([step, values.accuracy, values.accuracy_low, values.accuracy_high]);
    add(0, run.summary?.before);
    (series(run, "eval_accuracy") ?? []).forEach((value, i) => value !== null && points.push([run.metrics.step[i], value, ...wilson(value, run.evaluated)]));
    if (run.summary) add(run.summary.steps, run.summary.after);
    if (!points.length) return;
    const at = (i) => points.map((point) => point[i]);
    traces.push({ x: at(0), y: at(1), name: run.name, mode: "lines+markers", line: { color: color(r), width: 2 }, marker: { size: 7 }, hovertemplate: "%{y:.3f}",
      error_y: { type: "data", symmetric: false, array: points.map(([, y, , high]) => high - y), arrayminus: points.map(([, y, low]) => y - low), color: color(r), thickness: 1.2, width: 4 } });
    const teacher = run.summary?.teacher;
    if (teacher) traces.push({ x: [0, points.at(-1)[0]], y: [teacher.accuracy, teacher.accuracy], name: runs.length > 1 ? `teacher of ${run.name}` : "teacher", mode: "lines", line: { color: color(r), width: 1.5, dash: "dot" }, hovertemplate: "%{y:.3f}" });
  });
  const base = look();
  return traces.length ? { traces, layout: { height: 300, showlegend: true, yaxis: { ...base.yaxis, rangemode: "tozero", title: { text: "greedy accuracy, held out" } } } } : null;
}

function wilson(p, n) {
  if (!n) return [p, p];
  const z = 1.96, middle = p + (z * z) / (2 * n), spread = z * Math.sqrt((p * (1 - p)) / n + (z * z) / (4 * n * n)), all = 1 + (z * z) / n;
  return [(middle - spread) / all, (middle + spread) / all];
}

function phasesChart() {
  const spent = runs.map((run) => run.summary?.phase_seconds ?? run.phases ?? {});
  const names = [...new Set(spent.flatMap((phases) => Object.keys(phases)))].sort((a, b) => Math.max(...spent.map((s) => s[b] ?? 0)) - Math.max(...spent.map((s) => s[a] ?? 0)));
  if (!names.length) return null;
  const base = look(), y = runs.map((run) => run.name);
  const traces = names.map((name, i) => ({ type: "bar", orientation: "h", name, y, x: spent.map((phases) => phases[name] ?? 0), marker: { color: color(i) }, hovertemplate: "%{x:.1f} s" }));
  return { traces, layout: { barmode: "stack", height: 120 + 36 * runs.length, showlegend: true, hovermode: "closest", bargap: 0.35, legend: { orientation: "h", y: -0.5, x: 0, traceorder: "normal" },
    xaxis: { ...base.xaxis, title: { text: "seconds", standoff: 4 } }, yaxis: { ...base.yaxis, autorange: "reversed", showticklabels: runs.length > 1 } } };
}
