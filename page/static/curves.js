"use strict";
// Curves of the runs that are chosen.

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

const FITTED = ["accuracy", "code_ratio", "calls_per_response", "response_length"].map((name) => "learner/" + name);
const past = new Map();
async function curveOf(run, name) {
  const isFitted = state.fit && FITTED.includes(name);
  const key = JSON.stringify([run.name, name, state.axis]);
  let found = past.get(key);
  if (!found) {
    try {
      found = await ask("api/curve", { run: run.name, name, x: state.axis, most: POINTS });
    } catch (error) {
      return { x: [], y: [], unit: state.axis, why: `${run.name}: ${told(error)}` };
    }
    // What is over does not change.
    if (found.final) past.set(key, found);
  }
  return { ...found, fit: isFitted ? fitOf(run, name, key, found.final) : null };
}

// The newest fit there is. One that is computed may take seconds: the curve does not wait for it.
const fits = new Map(), asked = new Set();
function fitOf(run, name, key, isFinal) {
  const known = fits.get(key);
  if (asked.has(key) || (known && isFinal && !known.computing)) return known || WAITING;
  asked.add(key);
  ask("api/fit", { run: run.name, name, x: state.axis })
    .catch((error) => ({ form: "", x: [], why: told(error), computing: true }))
    .then((fit) => { fits.set(key, fit); asked.delete(key); if (!known) look(); });
  return known || WAITING;
}
const WAITING = { form: "", x: [], why: "it is being computed", computing: true };

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
  const positive = (values) => (state.log ? values.map((value) => (value > 0 ? value : null)) : values);
  const tables = having.map(({ curve }) => [curve.x, smoothed(positive(curve.y))]);
  const fitted = having.filter(({ curve }) => curve.fit && curve.fit.x.length);
  for (const { curve: { fit } } of fitted) tables.push([fit.x, ...[fit.y, fit.low, fit.high].map(positive)]);
  box.fit.textContent = having.filter(({ curve }) => curve.fit).map(({ curve: { fit } }) => fit.form || (fit.computing ? "…" : "no fit")).join(", ");
  box.fit.title = having.map(({ curve, run }) => (curve.fit && curve.fit.why ? `${run.name}: ${curve.fit.why}` : "")).filter(Boolean).join("\n");
  const data = tables.length > 1 ? uPlot.join(tables) : tables[0];
  const unit = having[0].curve.unit;
  const key = JSON.stringify([having.map((each) => each.run.name), fitted.map((each) => each.run.name), unit, state.log, dark.matches]);
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
    series: [{}, ...having.map(({ run }) => ({ stroke: colour(run), width: 1.5, spanGaps: true, points: { size: 5 } })),
      ...fitted.flatMap(({ run }) => [{ stroke: colour(run), width: 2, dash: [6, 4] }, {}, {}].map((line) => ({ ...line, spanGaps: true, points: { show: false } })))],
    bands: fitted.map(({ run }, at) => ({ series: [having.length + 3 * at + 3, having.length + 3 * at + 2], fill: colour(run) + "30" })),
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
  const fit = element("small", "", { className: "fit" });
  const box = element("div", [element("div", [element("span", name), fit, told, close], { className: "head" }), body], { className: "curve", role: "group", "aria-label": name });
  state.plots.set(name, { box, body, told, fit, plot: null, key: "", colours: [] });
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
