"use strict";
// The lives of a step's results as bars: issued, begun, sampled under which weights, published, used.

const lives = { page: 0, shown: "" };

function forgetLives() {
  Object.assign(lives, { page: 0, shown: "" });
  for (const id of ["lives", "life-legend", "life-told"]) find(id).replaceChildren();
}

async function lookAtLives() {
  const chosen = Number(find("life-step").value), step = chosen || state.step;
  if (!step) { find("lives").replaceChildren(element("p", "no step yet", { className: "empty" })); return; }
  const run = state.run;
  let found;
  try {
    found = await ask("api/lives", { run, step, page: lives.page });
  } catch (error) {
    forgetLives();
    throw error;
  }
  if (run !== state.run) return;
  if (found.trouble) trouble(found.trouble);
  if (!chosen) find("life-step").placeholder = step;
  find("lives-before").hidden = find("lives-after").hidden = found.pages < 2;
  find("lives-before").disabled = lives.page === 0;
  find("lives-after").disabled = lives.page >= found.pages - 1;
  find("lives-number").textContent = found.pages > 1 ? `${lives.page + 1} of ${found.pages}` : "";
  const shown = JSON.stringify([step, found]);
  if (shown === lives.shown) return;
  lives.shown = shown;
  showLives(step, found);
}

function showLives(step, found) {
  const behind = found.rows.map((row) => row.staleness).filter((value) => value !== null);
  const told = [`step ${step}`, TranscriptView.count(found.total, "result")];
  const [least, most] = [Math.min(...behind), Math.max(...behind)];
  if (behind.length) told.push(least < most ? `${least} to ${most} versions behind` : `${TranscriptView.count(most, "version")} behind`);
  find("life-told").textContent = told.join(" · ");
  if (!found.rows.length) {
    find("lives").replaceChildren(element("p", found.reading ? "the archive is being read" : "no result of this step is there", { className: "empty" }));
    find("life-legend").replaceChildren();
    return;
  }
  const times = found.rows.flatMap((row) => [row.issued_at, row.published_at]).filter((time) => time !== null);
  if (found.trained_at !== null) times.push(found.trained_at);
  const begin = Math.min(...times), end = Math.max(...times), whole = Math.max(1e-6, end - begin);
  const percent = (time) => (100 * (Math.min(Math.max(time, begin), end) - begin)) / whole;
  const versions = found.versions.filter(([, time]) => time <= end);
  const axis = element("div", versions.map(([version, time], at) => {
    // A name that would stand under the next one is left out.
    const isFree = at === versions.length - 1 || percent(versions[at + 1][1]) - percent(time) > (percent(versions[at + 1][1]) > 95 ? 8 : 4);
    const mark = element("span", isFree ? `v${version}` : "", { className: "mark", title: `step ${version} was done, and its version there, after ${seconds(time - begin)}` });
    mark.style.left = percent(time) + "%";
    if (percent(time) > 95) mark.classList.add("last");
    return mark;
  }), { className: "track axis" });
  const scale = element("div", [element("span", "0 s"), element("span", seconds(whole / 2)), element("span", seconds(whole))], { className: "track scale" });
  find("lives").replaceChildren(
    element("div", [element("span", "", { className: "who" }), axis], { className: "life" }),
    ...found.rows.map((row) => life(row, found, percent)),
    element("div", [element("span", "", { className: "who" }), scale], { className: "life" }),
  );
  const kinds = [["wait", "waits for an actor"], ["prefill", "until the first token"], ["queued", "waits for its step"], ["trained", "the step"]];
  const legend = kinds.map(([kind, text]) => element("span", [element("i", "", { className: kind }), text]));
  find("life-legend").replaceChildren(...legend, "sampled under:", ...versionSwatches(found.rows));
}

function seconds(value) { return value < 90 ? value.toFixed(value < 10 ? 2 : 0) + " s" : span(value); }

// The stretch between two moments; nothing where they are not known.
function stretch(kind, from, to, percent, title) {
  if (from === null || to === null || to < from) return [];
  const made = element("span", "", { className: "stretch " + kind, title });
  made.style.left = percent(from) + "%";
  made.style.width = Math.max(0.15, percent(to) - percent(from)) + "%";
  return [made];
}

function life(row, { taken_at: takenAt, trained_at: trainedAt }, percent) {
  const parts = [];
  parts.push(...stretch("wait", row.issued_at, row.started_at, percent, `waited ${seconds(row.started_at - row.issued_at)} for an actor`));
  parts.push(...stretch("prefill", row.started_at, row.first_token_at, percent, `first token after ${seconds(row.first_token_at - row.started_at)}`));
  if (row.first_token_at !== null) {
    // When the weights changed is not known; how many tokens each version sampled is.
    const tokens = row.versions.reduce((sum, [, begin, end]) => sum + end - begin, 0);
    let at = row.first_token_at;
    for (const [version, begin, end] of row.versions) {
      const to = at + ((row.published_at - row.first_token_at) * (end - begin)) / tokens;
      const made = stretch("sampled", at, to, percent, `${TranscriptView.count(end - begin, "token")} of weights ${version}`);
      for (const each of made) each.style.backgroundColor = versionColour(version);
      parts.push(...made);
      at = to;
    }
  } else {
    parts.push(...stretch("failed", row.published_at, row.published_at, percent, `failed: ${row.reason}`));
  }
  if (takenAt !== null) {
    parts.push(...stretch("queued", row.published_at, takenAt, percent, `waited ${seconds(takenAt - row.published_at)} for its step`));
    parts.push(...stretch("trained", Math.max(row.published_at, takenAt), trainedAt, percent, `the step took ${seconds(trainedAt - takenAt)}`));
  } else if (trainedAt !== null) {
    parts.push(...stretch("queued", row.published_at, trainedAt, percent, `its step was done ${seconds(trainedAt - row.published_at)} later`));
  }
  const behind = row.staleness === null ? "" : row.staleness ? ` · ${row.staleness} behind` : " · fresh";
  const who = element("button", [verdict(row), ` ${row.ticket}`, element("small", behind)], {
    className: "who", title: `${row.problem || row.reason} · ${row.actor}`, onclick: () => { show("transcripts"); openResult(row.ticket, row.group); },
  });
  return element("div", [who, element("div", parts, { className: "track" })], { className: "life" });
}

find("life-step").oninput = () => { lives.page = 0; remember(); look(); };
find("life-before").onclick = () => { stepBy("life-step", -1, state.step); lives.page = 0; remember(); look(); };
find("life-after").onclick = () => { stepBy("life-step", 1, state.step); lives.page = 0; remember(); look(); };
find("lives-before").onclick = () => { lives.page--; look(); };
find("lives-after").onclick = () => { lives.page++; look(); };
