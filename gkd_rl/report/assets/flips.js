// Held-out problems one by one: right before training and after it, or in one of the two alone.
const FLIPS = [["gained", "wrong before, right after", false, true], ["lost", "right before, wrong after", true, false], ["kept", "right both times", true, true], ["missed", "wrong both times", false, false]];
const AT_ONCE = 25;
const answers = runs.map(() => ({ before: new Map(), after: new Map() }));
let flipsShown = AT_ONCE;

async function startFlips() {
  $("flip-run").replaceChildren(...runs.map((run, number) => h("option", { value: number }, run.name)));
  $("flip-runs").hidden = runs.length < 2;
  for (const id of ["flip-run", "flip-kind"]) $(id).addEventListener("change", () => { flipsShown = AT_ONCE; showFlips(); });
  $("flip-more").addEventListener("click", () => { flipsShown += AT_ONCE; showFlips(); });
  for (const [number, run] of runs.entries()) await addAnswers(number, run.answers);
  showFlips();
}

/** Takes in packed answers of before or after, and shows them. */
async function addAnswers(number, packs) {
  for (const [when, text] of Object.entries(packs)) answers[number][when] = new Map((await unpack(text)).map((row) => [row.example, row]));
  if (data.live && Object.keys(packs).length) showFlips();
}

/** Of the problems that both evaluations have, those of each kind. */
function flipsOf(number) {
  const { before, after } = answers[number], both = [...before.values()].filter((row) => after.has(row.example)).map((row) => [row, after.get(row.example)]);
  return new Map(FLIPS.map(([kind, , first, second]) => [kind, both.filter(([one, other]) => one.right === first && other.right === second)]));
}

function showFlips() {
  const found = runs.map((_, number) => flipsOf(number)), total = (flips) => [...flips.values()].reduce((sum, rows) => sum + rows.length, 0);
  $("flips").hidden = found.every((flips) => !total(flips));
  if ($("flips").hidden) return;
  if (!total(found[$("flip-run").value])) $("flip-run").value = found.findIndex((flips) => total(flips));
  const flips = found[$("flip-run").value], count = (kind) => flips.get(kind).length, kept = $("flip-kind").value;
  $("flip-summary").textContent = `Of ${total(flips)} problems ${count("gained")} were gained and ${count("lost")} lost; ${count("kept")} were right both times and ${count("missed")} wrong. `
    + `If training had changed nothing, flips this uneven would come with probability ${short(signTest(count("gained"), count("lost")), 2)} (exact McNemar test).`;
  $("flip-kind").replaceChildren(...FLIPS.map(([kind, label]) => h("option", { value: kind }, `${label} (${count(kind)})`)));
  $("flip-kind").value = kept || FLIPS.find(([kind]) => count(kind))[0];
  const rows = flips.get($("flip-kind").value);
  $("flip-list").replaceChildren(...(rows.length ? rows.slice(0, flipsShown).map(flip) : [h("p", { class: "quiet" }, "none")]));
  $("flip-more").hidden = rows.length <= flipsShown;
}

/** Two-sided p of so many gains and losses under equal chances. */
function signTest(gained, lost) {
  const count = gained + lost;
  let log = -count * Math.LN2, sum = 0;
  for (let k = 0; k <= Math.min(gained, lost); k++) { sum += Math.exp(log); log += Math.log((count - k) / (k + 1)); }
  return Math.min(1, 2 * sum);
}

function flip([before, after]) {
  const prompt = typeof before.prompt === "string" ? before.prompt : (before.prompt ?? []).map((message) => `${message.role}: ${message.content}`).join("\n");
  const answer = (title, row) => h("div", { class: "flip-answer" }, h("h4", {}, title, " ", h("span", { class: `mark ${row.right ? "right" : "wrong"}` }, row.right ? "✓" : "✗")), h("div", { class: "text-block" }, row.completion ?? "–"));
  return h("details", {}, h("summary", {}, `example ${before.example}: ${prompt.replaceAll(/\s+/g, " ").slice(0, 110)}`),
    h("h4", {}, "prompt"), h("div", { class: "text-block" }, prompt || "–"),
    before.reference === undefined ? null : [h("h4", {}, "reference"), h("div", { class: "text-block" }, typeof before.reference === "string" ? before.reference : JSON.stringify(before.reference))],
    h("div", { class: "group" }, answer("before", before), answer("after", after)));
}
