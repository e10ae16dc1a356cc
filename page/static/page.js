"use strict";
// The page of one or several runs. It asks the server every two seconds while it is looked at. Whatever comes from a run is
// put into text nodes.

const EVERY_MS = 2000;
const ANSWER_MS = 8000;
const POINTS = 1500;
const COLOURS = ["#2f6fdb", "#d9662b", "#2f9e6e", "#9b51d6", "#c2365c", "#8a7a12"];
const FIRST = ["learner/accuracy", "learner/code_ratio", "learner/response_length", "learner/staleness_mean", "learner/behaviour_kl",
  "learner/step_seconds"];
const token = new URLSearchParams(location.search).get("token") || "";
const colour = (run) => COLOURS[state.runs.indexOf(run) % COLOURS.length];
const find = (id) => document.getElementById(id);

const state = { runs: [], shown: new Set(), run: null, axis: "step", smooth: 0, log: false, curves: [], plots: new Map() };

async function ask(path, parameters) {
  const query = new URLSearchParams(parameters || {});
  const headers = token ? { Authorization: "Bearer " + token } : {};
  const answer = await fetch(path + "?" + query, { headers, signal: AbortSignal.timeout(ANSWER_MS) });
  if (!answer.ok) throw new Error(answer.status === 401 ? await answer.text() : `the server says ${answer.status}`);
  return answer.json();
}

function element(tag, parts, properties) {
  const made = document.createElement(tag);
  for (const part of [].concat(parts === undefined ? [] : parts)) made.append(part);
  for (const [name, value] of Object.entries(properties || {})) {
    if (name.startsWith("aria-") || name === "role") made.setAttribute(name, value);
    else made[name] = value;
  }
  return made;
}

function number(value, digits) {
  if (value === null || value === undefined || !isFinite(value)) return "–";
  const size = Math.abs(value);
  if (size >= 1e6) return (value / 1e6).toFixed(1) + " M";
  if (size >= 1e4) return Math.round(value).toLocaleString("en");
  return value.toFixed(digits === undefined ? (size >= 100 ? 0 : size >= 1 ? 1 : 3) : digits);
}
const share = (value) => (value === null || value === undefined ? "–" : (100 * value).toFixed(1) + " %");
const rate = (value) => (value === null || value === undefined ? "–" : number(value, 0) + " tokens/s");
function span(seconds) {
  if (seconds === null || seconds === undefined) return "–";
  if (seconds < 90) return Math.round(seconds) + " s";
  if (seconds < 5400) return Math.round(seconds / 60) + " min";
  return (seconds / 3600).toFixed(1) + " h";
}
function size(bytes) { return bytes >= 2 ** 20 ? (bytes / 2 ** 20).toFixed(1) + " MiB" : (bytes / 1024).toFixed(0) + " KiB"; }

// --- now ---------------------------------------------------------------------------------------------------------------

function showNow(now) {
  document.title = `${now.step}${now.steps ? "/" + now.steps : ""} · ${now.run}`;
  const learner = now.roles.find((role) => role.role === "learner");
  const parts = [`step ${now.step}${now.steps ? " of " + now.steps : ""}`];
  if (now.emulated) parts.unshift("EMULATED");
  if (now.finished) parts.push("finished");
  else if (!now.live) parts.push((now.steps && now.step >= now.steps ? "done" : "stopped") + ", as its folder says: no server answers");
  if (now.left_s !== null) parts.push(`about ${span(now.left_s)} left`);
  if (learner && !now.finished) parts.push(`learner: ${learner.state}`);
  if (now.measured_ago_s !== null && now.live && !now.finished) parts.push(`last step ${span(now.measured_ago_s)} ago`);
  find("state").textContent = parts.join("  ·  ");
  const percent = now.steps ? Math.min(100, Math.round((100 * now.step) / now.steps)) : 0;
  find("progress").setAttribute("aria-valuenow", percent);
  find("progress").firstElementChild.style.width = percent + "%";
  const alarms = find("alarms");
  alarms.hidden = !now.alarms.length;
  alarms.replaceChildren(...now.alarms.map((alarm) => {
    const [head, ...rest] = alarm.line.split(": ");
    return element("p", [element("b", head + ": "), rest.join(": ")]);
  }));
  trouble(now.trouble || (now.left_out ? `left out: ${now.left_out} measurements of more names than the page keeps` : ""));
  find("cards").replaceChildren(...cards(now));
  find("roles").replaceChildren(...roles(now));
  find("tickets").replaceChildren(...tickets(now));
}

function trouble(text) {
  find("trouble").hidden = !text;
  find("trouble").textContent = text || "";
}

function card(name, value, note) {
  return element("div", [element("div", name, { className: "name" }), element("div", value, { className: "value" }),
    element("div", note || "", { className: "note" })], { className: "card" });
}

function cards(now) {
  const m = now.measured;
  const slots = now.sandboxes.reduce((sum, each) => sum + each.slots, 0);
  const busy = now.sandboxes.reduce((sum, each) => sum + each.in_flight, 0);
  const failed = now.sandboxes.reduce((sum, each) => sum + each.failures, 0);
  const inFlight = now.roles.filter((role) => role.role === "actor").reduce((sum, role) => sum + role.in_flight, 0);
  const results = now.streams.results;
  return [
    card("accuracy", share(m.accuracy), `reward ${number(m.reward, 3)}`),
    card("code ratio", share(m.code_ratio), `calls ok ${share(m.successful_call_ratio)}`),
    card("response", number(m.response_length, 0) + " tokens", `cut by the limit ${share(m.truncated_ratio)}`),
    card("generation", rate(now.tokens_per_s), `${inFlight} rollouts in flight`),
    card("training", rate(m.train_tokens_per_s), `step ${number(m.step_seconds, 1)} s, waited ${number(m.wait_seconds, 1)} s`),
    card("staleness", number(m.staleness_mean, 2), `largest ${number(m.staleness_max, 0)}`),
    card("off-policy", number(m.behaviour_kl, 4), `KL; clipped ${share(m.clip_fraction)}`),
    card("queue", results ? number(results.messages, 0) + " results" : "–", results ? size(results.bytes) + " on the bus" : ""),
    card("weight sync", number(m.weight_sync_seconds, 2) + " s", m.weight_bytes === undefined ? "" : size(m.weight_bytes) + " a version"),
    card("sandbox", now.sandboxes.length ? `${busy} of ${slots}` : "–", now.sandboxes.length ? `slots in use, ${failed} failures` : ""),
  ];
}

function roles(now) {
  const head = element("tr", ["role", "process", "doing", "weights", "in flight", "rates", "seen", "host"].map((name) => element("th", name)));
  const missing = now.missing.map((role) => element("tr", [element("td", role), element("td", "none alive", { className: "missing", colSpan: 7 })]));
  const there = now.roles.map((role) => element("tr", [
    role.role, role.id, role.state, role.version || "–", number(role.in_flight, 0),
    Object.entries(role.rates).map(([name, value]) => `${number(value)} ${name}`).join(", "),
    span(role.seen_ago_s) + " ago", role.host,
  ].map((text) => element("td", text, { title: text }))));
  if (!there.length && !missing.length) return [element("tr", element("td", "nobody"))];
  return [head, ...missing, ...there];
}

function tickets(now) {
  const t = now.tickets;
  if (t.issued === null || t.issued === undefined) return [element("p", "no step yet")];
  const bar = element("div", ["trained", "filtered", "failed"].map((end) => {
    const part = element("div", "", { className: end, title: `${t[end]} ${end}` });
    part.style.width = (100 * t[end]) / Math.max(1, t.issued) + "%";
    return part;
  }), { className: "share" });
  const rows = [];
  const row = (name, text) => rows.push(element("dt", name), element("dd", text));
  row("issued", number(t.issued, 0));
  const reasons = (found) => Object.entries(found).filter(([, count]) => count > 0).sort((a, b) => b[1] - a[1])
    .map(([reason, count]) => `${reason} ${number(count, 0)}`).join(", ");
  row("trained on", number(t.trained, 0));
  row("filtered", [number(t.filtered, 0), reasons(now.filtered)].filter(Boolean).join(": "));
  row("failed", [number(t.failed, 0), reasons(now.failed)].filter(Boolean).join(": "));
  row("open", number(t.open, 0));
  row("ignored results", number(t.ignored, 0));
  return [bar, element("dl", rows)];
}

// --- curves ------------------------------------------------------------------------------------------------------------

function smoothed(values) {
  if (!state.smooth) return values;
  let mean = 0, weight = 0;
  return values.map((value) => {
    if (value === null) return null;
    mean = state.smooth * mean + (1 - state.smooth) * value;
    weight = state.smooth * weight + (1 - state.smooth);
    return mean / weight;
  });
}

const past = new Map();
async function curveOf(run, name) {
  const key = JSON.stringify([run.name, name, state.axis]);
  if (past.has(key)) return past.get(key);
  let found;
  try {
    found = await ask("api/curve", { run: run.name, name, x: state.axis, most: POINTS });
  } catch (error) {
    return { x: [], y: [], unit: state.axis, why: `${run.name}: ${told(error)}` };
  }
  // What is over does not change.
  if (found.final) past.set(key, found);
  return found;
}

async function drawCurves() {
  const shown = state.runs.filter((run) => state.shown.has(run.name));
  await Promise.all(state.curves.map(async (name) => {
    const found = await Promise.all(shown.map((run) => curveOf(run, name)));
    if (state.curves.includes(name)) draw(name, shown, found);
  }));
}

function draw(name, runs, found) {
  const box = state.plots.get(name);
  const having = found.map((curve, at) => ({ curve, run: runs[at] })).filter((each) => each.curve.x.length);
  if (!having.length) {
    if (box.plot) box.plot.destroy();
    box.plot = null;
    box.body.replaceChildren(element("div", found.length ? found[0].why : "no run is chosen", { className: "empty" }));
    return;
  }
  const tables = having.map(({ curve }) => [curve.x, smoothed(state.log ? curve.y.map((y) => (y > 0 ? y : null)) : curve.y)]);
  const data = tables.length > 1 ? uPlot.join(tables) : tables[0];
  const unit = having[0].curve.unit;
  const key = JSON.stringify([having.map((each) => each.run.name), unit, state.log, dark.matches]);
  if (box.plot && box.key === key) { box.plot.setData(data); return; }
  if (box.plot) box.plot.destroy();
  const style = getComputedStyle(document.body);
  const ink = style.getPropertyValue("--faint"), grid = { stroke: style.getPropertyValue("--grid"), width: 1 };
  const axis = { stroke: ink, grid, ticks: grid, font: "11px system-ui" };
  box.body.replaceChildren();
  box.key = key;
  box.plot = new uPlot({
    width: Math.max(200, box.body.clientWidth), height: 200, cursor: { sync: { key: "curves" } }, legend: { show: false },
    hooks: { setCursor: [(plot) => tell(box, plot, unit)] },
    scales: { x: { time: unit === "time" }, y: { distr: state.log ? 3 : 1 } },
    axes: [{ ...axis, size: 30 }, { ...axis, size: 56 }],
    series: [{}, ...having.map(({ run }) => ({ stroke: colour(run), width: 1.5, spanGaps: true, points: { size: 5 } }))],
  }, data, box.body);
  box.colours = having.map(({ run }) => colour(run));
}

// Runs have their points at different places: the value of each that is nearest.
function nearest(values, at) {
  for (let far = 0; far < values.length; far++) {
    for (const value of [values[at - far], values[at + far]]) if (value !== null && value !== undefined) return value;
  }
  return null;
}

// What is under the cursor, of each run in its colour.
function tell(box, plot, unit) {
  const at = plot.cursor.idx;
  if (at === null || at === undefined) { box.told.replaceChildren(); return; }
  const x = plot.data[0][at];
  const place = unit === "time" ? new Date(1000 * x).toLocaleTimeString() : `${unit} ${Number(x.toPrecision(6))}`;
  const values = box.colours.map((each, series) => {
    const value = nearest(plot.data[series + 1], at);
    const text = element("b", value === null || value === undefined ? "–" : String(Number(value.toPrecision(4))));
    text.style.color = each;
    return text;
  });
  box.told.replaceChildren(place, ...values);
}

function addCurve(name) {
  if (state.plots.has(name)) return;
  const body = element("div");
  const told = element("span", "", { className: "told" });
  const close = element("button", "×", { title: "take away", "aria-label": `take ${name} away`, onclick: () => removeCurve(name) });
  const box = element("div", [element("div", [element("span", name), told, close], { className: "head" }), body], { className: "curve", role: "group", "aria-label": name });
  state.plots.set(name, { box, body, told, plot: null, key: "", colours: [] });
  state.curves.push(name);
  find("curves").append(box);
  remember();
}

function removeCurve(name) {
  const { box, plot } = state.plots.get(name);
  if (plot) plot.destroy();
  box.remove();
  state.plots.delete(name);
  state.curves = state.curves.filter((each) => each !== name);
  remember();
}

// What is shown is in the address, so that a link shows the same.
function remember() {
  const hash = new URLSearchParams({ x: state.axis, smooth: state.smooth, log: state.log ? 1 : 0, curves: state.curves.join(","),
    runs: [...state.shown].join(",") });
  history.replaceState(null, "", "#" + hash);
}
function recall() {
  const hash = new URLSearchParams(location.hash.slice(1));
  if (["step", "tokens", "compute", "time", "seconds"].includes(hash.get("x"))) state.axis = hash.get("x");
  state.smooth = Math.min(0.98, Math.max(0, Number(hash.get("smooth")) || 0));
  state.log = hash.get("log") === "1";
  const runs = (hash.get("runs") || "").split(",").filter((name) => state.runs.some((run) => run.name === name));
  if (runs.length) { state.shown = new Set(runs); state.run = runs[0]; }
  const curves = hash.has("curves") ? hash.get("curves").split(",").filter(Boolean) : FIRST;
  find("axis").value = state.axis;
  find("smooth").value = state.smooth;
  find("log").checked = state.log;
  curves.slice(0, 60).forEach(addCurve);
}

// --- the rest ----------------------------------------------------------------------------------------------------------

function showRuns() {
  find("runs").replaceChildren(...state.runs.map((run, at) => {
    const dot = element("span", "", { className: "dot" });
    dot.style.background = COLOURS[at % COLOURS.length];
    return element("button", [dot, run.name], {
      "aria-pressed": String(state.shown.has(run.name)), title: "click: show its state, and its curves or not",
      onclick: () => {
        if (state.run !== run.name) state.shown.add(run.name);
        else if (state.shown.size > 1) state.shown.delete(run.name);
        state.run = state.shown.has(run.name) ? run.name : [...state.shown][0];
        showRuns();
        remember();
        look();
      },
    });
  }));
}

async function showNames() {
  const names = await ask("api/names", { run: state.run });
  find("names").replaceChildren(...names.map((name) => element("option", "", { value: name })));
  return names;
}

function told(error) {
  const silent = error instanceof TypeError || error.name === "TimeoutError" || error.name === "AbortError";
  return silent ? "the page's server does not answer: is `zerotir page` still up?" : error.message;
}

let looking = false, again = false;
async function look() {
  if (looking) { again = true; return; }
  looking = true;
  try {
    showNow(await ask("api/now", { run: state.run }));
    await drawCurves();
  } catch (error) {
    trouble(told(error));
  }
  looking = false;
  if (again) { again = false; look(); }
}

const dark = matchMedia("(prefers-color-scheme: dark)");
dark.addEventListener("change", look);
addEventListener("resize", () => {
  for (const { plot, body } of state.plots.values()) if (plot) plot.setSize({ width: Math.max(200, body.clientWidth), height: 200 });
});
find("axis").onchange = (event) => { state.axis = event.target.value; remember(); look(); };
find("smooth").oninput = (event) => { state.smooth = Number(event.target.value); remember(); look(); };
find("log").onchange = (event) => { state.log = event.target.checked; remember(); look(); };
find("add").onfocus = () => showNames().catch(() => {});
find("add").onchange = async (event) => {
  const name = event.target.value.trim();
  const names = await showNames();
  event.target.setCustomValidity(names.includes(name) || !name ? "" : "no metric of this name is measured here");
  event.target.reportValidity();
  if (names.includes(name)) { addCurve(name); event.target.value = ""; look(); }
};
find("add").oninput = (event) => event.target.setCustomValidity("");
addEventListener("hashchange", () => location.reload());
addEventListener("keydown", (event) => {
  if (event.key === "/" && !(event.target instanceof HTMLInputElement)) { event.preventDefault(); find("add").focus(); }
  if (event.key === "Escape" && event.target === find("add")) find("add").blur();
});
document.addEventListener("visibilitychange", () => { if (!document.hidden) look(); });

(async () => {
  while (!state.runs.length) {
    try {
      state.runs = await ask("api/runs");
    } catch (error) {
      trouble(told(error));
      await new Promise((done) => setTimeout(done, EVERY_MS));
    }
  }
  try {
    state.run = state.runs[0].name;
    state.shown = new Set(state.runs.slice(0, COLOURS.length).map((run) => run.name));
    recall();
    showRuns();
    await look();
    setInterval(() => { if (!document.hidden) look(); }, EVERY_MS);
  } catch (error) { trouble(error.message); find("state").textContent = "no run"; }
})();
