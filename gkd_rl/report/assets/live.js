// A run that goes on: every two seconds its server is asked for what was added.
const PAUSE = 2000;

function startLive() {
  const follow = async () => {
    try {
      const answer = await fetch(`/new?positions=${encodeURIComponent(JSON.stringify(runs.map((run) => run.positions)))}`);
      if (!answer.ok) throw new Error(await answer.text());
      const news = await answer.json();
      if (news.restart) { location.reload(); return; }
      await takeIn(news.runs);
      $("live").textContent = runs.every((run) => run.summary?.steps === run.max_steps) ? "● finished" : `● live, step ${runs.map(lastStep).join(", ")}`;
    } catch (error) {
      $("live").textContent = error instanceof TypeError ? "○ the server does not answer" : `○ ${error.message}`;
    }
    setTimeout(follow, PAUSE);
  };
  follow();
}

async function takeIn(packs) {
  let changed = false;
  for (const [number, pack] of packs.entries()) {
    const run = runs[number];
    changed ||= pack.metrics.step.length > 0 || pack.watch.length > 0 || Boolean(pack.summary) !== Boolean(run.summary);
    extend(run.metrics, pack.metrics);
    for (const name of Object.keys(run.flops)) run.flops[name] += pack.flops[name];
    run.watch.push(...pack.watch);
    run.phases = pack.phases ?? run.phases;
    Object.assign(run, { summary: pack.summary, environment: pack.environment, positions: pack.positions, scale: run.scale ?? pack.scale });
    Object.assign(run.tokens, pack.tokens);
    for (const chunk of pack.chunks) await addChunk(number, chunk);
    await addAnswers(number, pack.answers);
  }
  if (packs.some((pack) => pack.chunks.length)) refilter();
  if (!changed) return;
  showOverview();
  showEvaluation();
  showCost();
  refreshCharts();
}

function extend(metrics, more) {
  const before = metrics.step.length;
  metrics.step.push(...more.step);
  for (const name of new Set([...Object.keys(metrics.values), ...Object.keys(more.values)])) {
    const column = (metrics.values[name] ??= new Array(before).fill(null));
    column.push(...(more.values[name] ?? new Array(more.step.length).fill(null)));
  }
}
