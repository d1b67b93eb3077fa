// The list of rollouts: columns of all of them, filtered and sorted as numbers; only rows in view are elements.
const HEIGHT = 52;
const chunkList = [];
const all = { run: [], chunk: [], row: [], step: [], example: [], on_policy: [], reward: [], right: [], advantage: [], length: [], divergence: [], reading: [], head: [] };
let shown = new Uint32Array(0), chosen = -1, rising = true, found = null, searching = 0;

async function addChunk(run, chunk) {
  const number = chunkList.push({ ...chunk, run }) - 1, index = await unpack(chunk.index);
  for (let row = 0; row < chunk.rows; row++) { all.run.push(run); all.chunk.push(number); all.row.push(row); }
  for (const name of Object.keys(index)) for (const value of index[name]) all[name].push(value);
}

async function startRollouts() {
  $("run").append(h("option", { value: "all" }, "all"), ...runs.map((run, number) => h("option", { value: number }, run.name)));
  $("run").parentElement.hidden = runs.length < 2;
  const list = $("list");
  list.addEventListener("scroll", drawRows);
  list.addEventListener("keydown", moveInList);
  new ResizeObserver(drawRows).observe(list);
  $("filters").addEventListener("input", (event) => (event.target.id === "search" ? search() : refilter()));
  $("filters").addEventListener("submit", (event) => event.preventDefault());
  $("filters").addEventListener("reset", () => setTimeout(() => { rising = true; sayOrder(); search(); }));
  $("order").addEventListener("click", () => { rising = !rising; sayOrder(); refilter(); });
  startDetail();
  for (const [number, run] of runs.entries()) for (const chunk of run.chunks) {
    await addChunk(number, chunk);
    if (chunkList.length === 1) refilter();
  }
  refilter();
  list.dataset.ready = "true";
}

function sayOrder() { $("order").textContent = rising ? "↑ rising" : "↓ falling"; }

const VERDICTS = {
  all: () => true,
  right: (i) => all.right[i] === 1,
  wrong: (i) => all.right[i] === 0,
  unread: (i) => all.reading[i] === "no_answer",
  unjudged: (i) => all.right[i] === null,
  dataset: (i) => !all.on_policy[i],
};

function refilter() {
  const limit = (id, other) => ($(id).value === "" ? other : Number($(id).value));
  const ranges = ["reward", "step", "length"].map((name) => [all[name], limit(`${name}-low`, -Infinity), limit(`${name}-high`, Infinity)]).filter(([, low, high]) => low > -Infinity || high < Infinity);
  const fits = VERDICTS[$("verdict").value], run = $("run").value;
  const kept = [];
  for (let i = 0; i < all.run.length; i++) {
    if (!fits(i) || (run !== "all" && all.run[i] !== Number(run)) || (found && !found.has(i))) continue;
    if (ranges.every(([column, low, high]) => column[i] !== null && column[i] >= low && column[i] <= high)) kept.push(i);
  }
  const column = all[$("sort").value], sign = rising ? 1 : -1;
  const last = sign * Infinity;
  shown = Uint32Array.from(kept).sort((a, b) => sign * ((column[a] ?? last) - (column[b] ?? last) || 0) || a - b);
  $("rows").style.height = `${shown.length * HEIGHT}px`;
  $("count").textContent = all.run.length ? `${shown.length.toLocaleString("en")} of ${all.run.length.toLocaleString("en")} rollouts` : "No rollouts were logged (log_rollouts_every).";
  $("browser").hidden = !all.run.length;
  if (chosen < 0 && shown.length) choose(shown[0], false);
  drawRows();
}

function drawRows() {
  const list = $("list"), first = Math.max(0, Math.floor(list.scrollTop / HEIGHT) - 4), last = Math.min(shown.length, Math.ceil((list.scrollTop + list.clientHeight) / HEIGHT) + 4);
  const rows = [];
  for (let place = first; place < last; place++) rows.push(listed(shown[place], place));
  $("rows").replaceChildren(...rows);
  if (rows.some((row) => row.id === `row-${chosen}`)) list.setAttribute("aria-activedescendant", `row-${chosen}`);
  else list.removeAttribute("aria-activedescendant");
}

function listed(i, place) {
  return h("div", { class: "row", role: "option", id: `row-${i}`, "aria-selected": i === chosen ? "true" : "false", "aria-posinset": place + 1, "aria-setsize": shown.length, style: { top: `${place * HEIGHT}px` }, onclick: () => { choose(i, true); drawRows(); } },
    h("div", { class: "top" }, mark(i), runs.length > 1 ? h("span", { style: { color: color(all.run[i]) } }, runs[all.run[i]].name) : null, h("span", {}, `step ${all.step[i]}`), h("span", {}, `${all.length[i]} tokens`),
      h("span", {}, all.divergence[i] === null ? "" : `divergence ${short(all.divergence[i], 2)}`)),
    h("div", { class: "text" }, all.head[i] || "(empty)"));
}

function mark(i) {
  const right = all.right[i];
  const [sign, word] = right === 1 ? ["✓", "right"] : right === 0 ? ["✗", "wrong"] : ["·", "not judged"];
  return h("span", { class: `mark ${word}`, title: word }, `${sign} ${short(all.reward[i], 3)}`);
}

function moveInList(event) {
  const place = shown.indexOf(chosen), page = Math.floor($("list").clientHeight / HEIGHT);
  const moves = { ArrowDown: place + 1, ArrowUp: place - 1, PageDown: place + page, PageUp: place - page, Home: 0, End: shown.length - 1 };
  if (event.key === "Enter") { event.preventDefault(); readChosen(); return; }
  if (!(event.key in moves) || !shown.length) return;
  event.preventDefault();
  const next = Math.min(shown.length - 1, Math.max(0, moves[event.key]));
  const list = $("list"), top = next * HEIGHT;
  if (top < list.scrollTop) list.scrollTop = top;
  if (top + HEIGHT > list.scrollTop + list.clientHeight) list.scrollTop = top + HEIGHT - list.clientHeight;
  choose(shown[next], false);
  drawRows();
  $(`row-${chosen}`)?.scrollIntoView({ block: "nearest", behavior: "instant" });
}

let pause = 0;
function search() {
  clearTimeout(pause);
  pause = setTimeout(async () => {
    const wanted = $("search").value.trim().toLowerCase(), mine = ++searching;
    if (!wanted) { found = null; refilter(); return; }
    const matches = new Set();
    let first = 0;
    for (const [number, chunk] of chunkList.entries()) {
      const texts = await textsOf(chunk);
      if (mine !== searching) return;
      const prompts = texts.prompts.map((prompt) => plain(prompt).toLowerCase().includes(wanted));
      for (let row = 0; row < chunk.rows; row++) if (prompts[texts.prompt[row]] || texts.completion[row].toLowerCase().includes(wanted)) matches.add(first + row);
      first += chunk.rows;
      if (number % 10 === 9) $("count").textContent = `searching: ${Math.round((100 * number) / chunkList.length)}%`;
    }
    found = matches;
    refilter();
    $("list").scrollTop = 0;
  }, 200);
}

const plain = (prompt) => (typeof prompt === "string" ? prompt : prompt.map((message) => message.content).join("\n"));

async function textsOf(chunk) { return (chunk.textsRead ??= unpack(chunk.texts)); }

const recent = [];
/** Figures of tokens are many: those of a few chunks are kept. */
async function tokensOf(chunk) {
  if (!chunk.tokensRead) {
    chunk.tokensRead = unpack(chunk.tokens);
    recent.push(chunk);
    if (recent.length > 6) recent.shift().tokensRead = null;
  }
  return chunk.tokensRead;
}
