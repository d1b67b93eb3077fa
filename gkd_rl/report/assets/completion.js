// One rollout: its texts, what was said of it, and its tokens in the colour of a figure; or its whole group side by side.
const shades = {
  divergence: { label: "divergence to the teacher", strength: (row, t) => Math.sqrt((row.divergence[t] ?? 0) / (row.scale || 1)), paint: () => "--warm" },
  surprise: { label: "student's surprise (−log p)", strength: (row, t) => Math.sqrt(-(row.logprobs[t] ?? 0) / 3), paint: () => "--warm" },
  advantage: { label: "advantage of the answer", strength: (row) => Math.abs(row.advantage) / 1.5, paint: (row) => (row.advantage >= 0 ? "--plus" : "--minus") },
};
let shade = "divergence", grouped = false, asked = 0;

function startDetail() { $("detail").append(h("p", { class: "quiet" }, "Choose a rollout.")); }

function choose(i, byPointer) {
  chosen = i;
  showDetail();
  if (byPointer && window.innerWidth <= 760) $("detail").scrollIntoView();
}

function readChosen() {
  const tokens = $("detail").querySelector(".this .tokens, .tokens");
  (tokens ?? $("detail")).focus();
}

/** Everything of rollout `i`, of whatever chunk. */
async function whole(i) {
  const chunk = chunkList[all.chunk[i]], row = all.row[i], run = runs[chunk.run];
  const [texts, tokens] = await Promise.all([textsOf(chunk), tokensOf(chunk)]);
  const of = (name) => tokens[name]?.[row] ?? null;
  return { i, run, scale: run.scale, prompt: texts.prompts[texts.prompt[row]], completion: texts.completion[row], columns: texts.columns[row], rewards: texts.rewards[row], version: texts.version[row],
    reading: texts.reading[row], reward: all.reward[i], advantage: all.advantage[i], step: all.step[i], example: all.example[i],
    tokens: of("tokens"), logprobs: of("logprobs"), divergence: of("divergence"), student_top: of("student_top"), teacher_top: of("teacher_top") };
}

function groupOf(i) {
  const members = [];
  for (let other = 0; other < all.run.length; other++) if (all.example[other] === all.example[i] && all.step[other] === all.step[i] && all.run[other] === all.run[i]) members.push(other);
  return members;
}

async function showDetail() {
  const mine = ++asked, group = groupOf(chosen), rows = await Promise.all((grouped && group.length > 1 ? group : [chosen]).map(whole));
  if (mine !== asked) return;
  const row = rows.find((other) => other.i === chosen);
  const panel = h("div", { class: "token", "aria-live": "polite" }, h("p", { class: "quiet" }, "Point at a token, or go through them by the arrow keys, for its figures."));
  const answers = rows.length > 1 ? h("div", { class: "group" }, rows.map((other) => h("div", { class: other.i === chosen ? "this" : null }, facts(other, true), tokenView(other, panel)))) : tokenView(row, panel);
  const scroll = $("detail").scrollTop;
  $("detail").replaceChildren(facts(row, false), controls(group.length), h("h4", {}, rows.length > 1 ? `${rows.length} answers to the same prompt` : "Answer"), answers,
    ...(rows.length > 1 ? [] : [readingLine(row) ?? ""]), h("h4", {}, "Prompt"), promptView(row.prompt), h("h4", {}, "Columns of the data"), columnsView(row), panel);
  $("detail").scrollTop = grouped ? scroll : 0;
}

function facts(row, brief) {
  const chips = [[`reward ${short(row.reward)}`, all.right[row.i] === 1 ? "good" : all.right[row.i] === 0 ? "bad" : ""], [`advantage ${short(row.advantage)}`, ""], [`${row.tokens.length} tokens`, ""]];
  if (!brief) {
    chips.unshift([`step ${row.step}`, ""], [`example ${row.example}`, ""]);
    if (runs.length > 1) chips.unshift([row.run.name, ""]);
    if (Object.keys(row.rewards).length > 1) chips.push(...Object.entries(row.rewards).map(([name, value]) => [`${name} ${short(value)}`, ""]));
    if (row.step !== row.version + 1) chips.push([`policy of step ${row.version}`, ""]);
    if (!all.on_policy[row.i]) chips.push(["not the student's own", ""]);
  }
  return h("div", { class: "line" }, chips.map(([text, kind]) => h("span", { class: `chip ${kind}` }, text)), brief ? readingLine(row) : null);
}

function controls(size) {
  const change = (event) => { shade = event.target.value; showDetail(); };
  return h("div", { class: "line" },
    h("label", { class: "quiet" }, "colour ", h("select", { id: "shade", onchange: change }, Object.entries(shades).map(([name, { label }]) => h("option", { value: name, selected: name === shade }, label)))),
    legend(),
    size > 1 ? h("button", { id: "group", type: "button", "aria-pressed": grouped ? "true" : "false", onclick: () => { grouped = !grouped; showDetail().then(() => $("group").focus()); } }, `group of ${size} side by side`) : null);
}

function legend() {
  const side = (name) => `rgba(var(${name}),.7)`;
  const ends = shade === "advantage" ? ["−1.5", "+1.5"] : ["0", shade === "surprise" ? "3 nats" : short(runs[all.run[chosen]].scale ?? 1, 2)];
  const paint = shade === "advantage" ? `linear-gradient(90deg,${side("--minus")},transparent,${side("--plus")})` : `linear-gradient(90deg,transparent,${side("--warm")})`;
  return h("span", { class: "legend" }, ends[0], h("i", { style: { background: paint } }), ends[1]);
}

const textOf = (run, id) => run.tokens[id] ?? `⟨${id}⟩`;
const visible = (text) => text.replace(/\n/g, "↵").replace(/\t/g, "⇥").replace(/^ | $/g, "␣");

function tokenView(row, panel) {
  const { strength, paint } = shades[shade];
  const view = h("div", { class: "tokens", tabindex: 0, role: "group", "aria-label": "tokens of the answer; arrow keys go through them" });
  const spans = row.tokens.map((id, t) => {
    const text = textOf(row.run, id), level = Math.min(1, Math.max(0, strength(row, t)));
    const special = /^<.*>$|^\[.*\]$/.test(text);
    return h("span", { "data-token": t, class: special ? "special" : null, style: { background: level > 0.03 ? `rgba(var(${paint(row)}),${(0.7 * level).toFixed(3)})` : "" } }, text.replace(/\n/g, "↵\n"));
  });
  let at = -1;
  const point = (t) => {
    if (t < 0 || t >= spans.length) return;
    $("detail").querySelectorAll("span.chosen").forEach((span) => span.classList.remove("chosen"));
    at = t;
    spans[t].classList.add("chosen");
    panel.replaceChildren(...tokenDetails(row, t));
  };
  view.append(...spans);
  view.addEventListener("mouseover", (event) => event.target.dataset?.token && point(Number(event.target.dataset.token)));
  view.addEventListener("click", (event) => event.target.dataset?.token && point(Number(event.target.dataset.token)));
  view.addEventListener("focus", () => at < 0 && view.matches(":focus-visible") && point(0));
  view.addEventListener("keydown", (event) => {
    const moves = { ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: spans.length - 1 };
    if (event.key === "Escape") $("list").focus();
    if (event.key in moves) { event.preventDefault(); point(moves[event.key]); }
  });
  return view;
}

function tokenDetails(row, t) {
  const id = row.tokens[t], logprob = row.logprobs[t];
  const figures = [["token", visible(textOf(row.run, id))], ["number", id], ["place", `${t + 1} of ${row.tokens.length}`], ["student's p", logprob === null ? "–" : share(Math.exp(logprob))], ["log p", short(logprob)], ["divergence", short(row.divergence[t])]];
  const side = (title, choices, paint) => h("div", {}, h("h4", {}, title), choices.map(([other, p]) => h("div", { class: `choice ${other === id ? "said" : ""}` }, h("code", {}, visible(textOf(row.run, other))), h("i", { style: { width: `${100 * p}%`, background: paint } }), h("b", {}, share(p)))));
  const tops = [["student would say", row.student_top, "var(--accent)"], ["teacher would say", row.teacher_top, "rgb(var(--warm))"]].filter(([, choices]) => choices);
  return [h("dl", { class: "figures", style: { margin: 0 } }, figures.map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", {}, value)))),
    tops.length ? h("div", { class: "choices" }, tops.map(([title, choices, paint]) => side(title, choices[t], paint))) : h("p", { class: "quiet" }, "The likeliest tokens were not logged (log_top_choices).")];
}

const STATUS = { correct: "right", wrong: "wrong", no_answer: "no answer to be read", bad_reference: "the reference cannot be read" };

function readingLine(row) {
  const reading = row.reading;
  if (!reading) return null;
  const parts = [`verifier: ${STATUS[reading.status]}`];
  if (reading.read) parts.push(`read “${reading.read}” (${reading.form})`);
  if (reading.reference !== null && reading.status === "wrong") parts.push(`the reference is ${reading.reference}`);
  if (reading.first_wrong_step) parts.push(`first wrong step: ${reading.first_wrong_step}`);
  if (reading.note) parts.push(reading.note);
  return h("p", { class: "quiet reading", style: { margin: "6px 0 0" } }, parts.join(" · "));
}

function promptView(prompt) {
  if (typeof prompt === "string") return h("div", { class: "text-block" }, prompt);
  return h("div", { class: "text-block" }, prompt.map((message) => h("div", {}, h("span", { class: "role" }, message.role), message.content)));
}

function columnsView(row) {
  const entries = Object.entries(row.columns);
  if (!entries.length) return h("p", { class: "quiet" }, "none");
  return h("dl", { class: "figures" }, entries.map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", {}, typeof value === "string" ? value : JSON.stringify(value)))));
}
