// What was run and what came of it: cards, settings, evaluation, cost.
const runs = data.runs;
const lastStep = (run) => run.metrics.step.at(-1) ?? 0;
const series = (run, name) => run.metrics.values[name];
const lastValue = (run, name) => (series(run, name) ?? []).findLast((value) => value !== null);

function start() {
  startTheme();
  showOverview();
  showEvaluation();
  showCost();
  startCurves();
  startFlips();
  startRollouts();
  if (data.live) startLive();
}

function showOverview() {
  $("cards").replaceChildren(...runs.map(card));
  $("warnings").replaceChildren(...runs.flatMap((run) => [...run.watch.map((finding) => hacking(run, finding)), ...run.notes.map((note) => h("div", { class: "warning" }, `${run.name}: ${note}`))]));
  showSettings();
}

function card(run, number) {
  const summary = run.summary, step = lastStep(run);
  const finished = summary && summary.steps === run.max_steps;
  const before = summary?.before, after = summary?.after, during = lastValue(run, "eval_accuracy");
  const accuracy = after?.accuracy ?? during ?? null;
  const flops = summed(run.flops);
  const figures = [
    ["divergence to teacher", before ? `${share(before.divergence)} → ${share(after.divergence)}` : share(lastValue(run, "divergence"))],
    ["reward of samples", before ? `${share(before.reward)} → ${share(after.reward)}` : share(lastValue(run, "reward"))],
    ["tokens per answer", before ? `${short(before.length)} → ${short(after.length)}` : short(lastValue(run, "length"))],
    ["teacher's weight α", short(run.alpha)],
    ["time", seconds(summary?.seconds ?? (run.phases ? summed(run.phases) : null))],
    ["arithmetic", flops ? `${short(flops / 1e12)} TFLOP` : "–"],
    ["parameters trained", short(summary?.trained_parameters)],
    ["device", run.environment?.device ?? "–"],
  ];
  return h("article", { class: "card" },
    h("header", { class: "plain" }, h("span", { class: "dot", style: { background: color(number) } }), h("h3", {}, run.name),
      h("span", { class: `chip ${finished ? "good" : ""}` }, finished ? `finished, ${step} steps` : `step ${step} of ${run.max_steps}`)),
    accuracy === null ? h("p", { class: "quiet" }, "no evaluation yet")
      : h("p", { class: "big" }, before ? `${share(before.accuracy)} → ${share(accuracy)}` : share(accuracy), " ", h("small", {}, "greedy accuracy, held out")),
    before ? intervals(summary, number) : null,
    h("dl", { class: "figures" }, figures.map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", {}, value)))),
    h("p", { class: "quiet", style: { margin: "10px 0 0" } }, run.folder));
}

const summed = (parts) => Object.values(parts).reduce((sum, value) => sum + value, 0);

/** Accuracies with their 95% intervals on a line from 0 to 1. */
function intervals(summary, number) {
  const place = (value) => 2 + value * 96;
  const picture = svg("svg", { class: "interval", role: "img" });
  picture.append(svg("title", {}, "accuracy before, after and of the teacher, with 95% intervals"));
  picture.append(svg("line", { x1: "2%", x2: "98%", y1: 18, y2: 18, stroke: "var(--line)", "stroke-width": 2 }));
  for (const [name, values, paint] of [["teacher", summary.teacher, "var(--quiet)"], ["before", summary.before, "var(--quiet)"], ["after", summary.after, color(number)]]) {
    if (!values) continue;
    const wide = { y1: 18, y2: 18, stroke: paint, "stroke-width": 6, "stroke-opacity": 0.35, "stroke-linecap": "round" };
    picture.append(svg("line", { x1: `${place(values.accuracy_low)}%`, x2: `${place(values.accuracy_high)}%`, ...wide }));
    picture.append(svg("circle", { cx: `${place(values.accuracy)}%`, cy: 18, r: 5.5, fill: name === "before" ? "var(--panel)" : paint, stroke: paint, "stroke-width": 2 }));
    const anchor = values.accuracy > 0.9 ? "end" : values.accuracy < 0.1 ? "start" : "middle";
    picture.append(svg("text", { x: `${place(values.accuracy)}%`, y: name === "before" ? 8 : 40, "text-anchor": anchor }, name));
  }
  return picture;
}

function hacking(run, finding) {
  return h("div", { class: "warning" }, h("strong", {}, `${run.name}: this looks like reward hacking. `), finding.found,
    finding.most_rewarded?.length ? h("details", {}, h("summary", {}, "the answers rewarded most"),
      finding.most_rewarded.map((row) => h("pre", {}, `${short(row.reward)}  ${row.completion}`))) : null);
}

/** Settings on which runs differ as a table, those that are the same but not at their default in short. */
function showSettings() {
  const apart = data.settings.filter((row) => row.between), alike = data.settings.filter((row) => !row.between), several = runs.length > 1;
  const cell = (kind, value) => h("td", { class: kind }, value ?? "null");
  const parts = [];
  if (several) parts.push(h("h3", {}, apart.length ? "Settings on which the runs differ" : "The runs have the same settings"));
  if (apart.length) parts.push(h("div", { class: "scroll" }, table(["key", ...runs.map((run) => run.name), "default"],
    apart.map((row) => [cell("key", row.key), ...row.values.map((value) => cell("set", value)), cell("default", row.default)]), true)));
  if (alike.length) parts.push(h("details", { open: !several }, h("summary", {}, `${alike.length} settings that are not at their default${several ? ", the same in all" : ""}`),
    h("dl", { class: "card settings" }, alike.map((row) => h("div", {}, h("dt", {}, row.key), h("dd", {}, row.values[0] ?? "null", h("small", {}, `  default ${row.default ?? "null"}`)))))));
  $("settings").replaceChildren(...parts);
}

const FIGURES = [["greedy accuracy", "accuracy"], ["95% interval", "interval"], ["mean reward of samples", "reward"], ["divergence to teacher", "divergence"],
  ["KL(student‖teacher)", "reverse_kl"], ["tokens per answer", "length"], ["cut off at the limit", "truncated"], ["examples", "examples"], ["tokens/s sampled", "tokens_per_second"]];

function figure(values, name) {
  if (!values) return "–";
  if (name === "interval") return `${share(values.accuracy_low)} to ${share(values.accuracy_high)}`;
  const value = values[name];
  return name === "examples" || name === "tokens_per_second" ? short(value && Math.round(value)) : share(value);
}

/** One run: before, after, teacher. Several: what each came to; an accuracy is marked as best if its interval lies above all others. */
function showEvaluation() {
  const single = runs.length === 1;
  const shown = single ? [["before", runs[0].summary?.before], ["after", runs[0].summary?.after], ["teacher", runs[0].summary?.teacher]] : runs.map((run) => [run.name, run.summary?.after]);
  const best = (values) => !single && values && shown.every(([, other]) => other === values || !other || other.accuracy_high < values.accuracy_low);
  const rows = FIGURES.map(([label, name]) => [label, ...shown.map(([, values]) => h("td", { class: name === "accuracy" && best(values) ? "value best" : "value" }, figure(values, name)))]);
  const none = shown.every(([, values]) => !values);
  $("final").replaceChildren(none ? h("p", { class: "quiet" }, "The run has not come to its final evaluation.") : table([single ? "" : "after training", ...shown.map(([name]) => name)], rows));
}

const WORK = [["sample", "flops_generation", "sampling"], ["teacher", "flops_teacher", "teacher"], ["student", "flops_student", "student's update"]];

function showCost() {
  const rows = runs.map((run) => {
    const phases = run.summary?.phase_seconds ?? run.phases ?? {};
    return [run.name, seconds(summed(phases)), ...WORK.flatMap(([phase, name]) => [short(run.flops[name] / 1e12), phases[phase] ? short(run.flops[name] / phases[phase] / 1e9) : "–"])];
  });
  const head = ["", "time", ...WORK.flatMap(([, , label]) => [`${label}: TFLOP`, "GFLOP/s"])];
  $("flops").replaceChildren(table(head, rows));
}
