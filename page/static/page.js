"use strict";
// The page of one or several runs: what is chosen, and the loop. It asks the server every two seconds while it is looked at.

// What is shown is in the address, so that a link shows the same.
function remember(isStep) {
  const hash = new URLSearchParams({ x: state.axis, smooth: state.smooth, log: state.log ? 1 : 0, fit: state.fit ? 1 : 0, curves: state.curves.join(","),
    runs: [state.run, ...state.shown].filter((name, at, all) => all.indexOf(name) === at).join(","), view: state.view });
  const more = { ticket: results.ticket, tint: results.tint, page: results.page || "", life: find("life-step").value };
  for (const name of FILTERS) more[name] = find(name).value;
  for (const [name, value] of Object.entries(more)) if (value) hash.set(name, value);
  // What the browser's Back leads to.
  history[isStep ? "pushState" : "replaceState"](null, "", "#" + hash);
}
function recall() {
  const hash = new URLSearchParams(location.hash.slice(1));
  if (["step", "tokens", "compute", "time", "seconds"].includes(hash.get("x"))) state.axis = hash.get("x");
  state.smooth = Math.min(0.98, Math.max(0, Number(hash.get("smooth")) || 0));
  state.log = hash.get("log") === "1";
  state.fit = hash.get("fit") === "1";
  const runs = (hash.get("runs") || "").split(",").filter((name) => state.runs.some((run) => run.name === name));
  if (runs.length) { state.shown = new Set(runs); state.run = runs[0]; }
  if (["run", "transcripts", "lives"].includes(hash.get("view"))) state.view = hash.get("view");
  if (hash.get("end")) find("end").append(element("option", hash.get("end"), { value: hash.get("end") }));
  for (const name of FILTERS) find(name).value = hash.get(name) || "";
  showEnds([]);
  find("life-step").value = hash.get("life") || "";
  results.ticket = Number(hash.get("ticket")) || null;
  results.page = Math.max(0, Math.floor(Number(hash.get("page")) || 0));
  if (hash.get("tint") in TINTS) results.tint = hash.get("tint");
  const curves = hash.has("curves") ? hash.get("curves").split(",").filter(Boolean) : FIRST;
  find("axis").value = state.axis;
  find("smooth").value = state.smooth;
  find("log").checked = state.log;
  find("fit").checked = state.fit;
  curves.slice(0, 60).forEach(addCurve);
}

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
        forgetResults();
        forgetLives();
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

function show(view) {
  state.view = view;
  for (const button of find("views").children) button.setAttribute("aria-pressed", String(button.value === view));
  for (const name of ["run", "transcripts", "lives"]) find(name + "-view").hidden = name !== view;
  remember();
  look();
}

let looking = false, again = false;
async function look() {
  if (looking) { again = true; return; }
  looking = true;
  try {
    showNow(await ask("api/now", { run: state.run }));
    await { run: drawCurves, transcripts: lookAtTranscripts, lives: lookAtLives }[state.view]();
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
find("fit").onchange = (event) => { state.fit = event.target.checked; remember(); look(); };
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
  const isTyped = event.target instanceof HTMLInputElement || event.target instanceof HTMLSelectElement;
  if (event.key === "Escape" && isTyped) event.target.blur();
  if (isTyped || event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.key === "/" && state.view !== "lives") { event.preventDefault(); find(state.view === "run" ? "add" : "search").focus(); }
  if (state.view === "transcripts" && event.key === "j") next(1);
  if (state.view === "transcripts" && event.key === "k") next(-1);
});
for (const button of find("views").children) button.onclick = () => show(button.value);
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
    show(state.view);
    setInterval(() => { if (!document.hidden) look(); }, EVERY_MS);
  } catch (error) { trouble(error.message); find("state").textContent = "no run"; }
})();
