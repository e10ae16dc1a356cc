"use strict";
// Results of a run, and all responses to one problem side by side.

const FILTERS = ["step", "end", "verdict", "code", "search"];
const ENDS = { trained: "trained on", filtered: "filtered", failed: "failed", waiting: "waits", unknown: "trained on or filtered" };
const results = { page: 0, pages: 0, ticket: null, group: null, tint: "", rows: [], shown: "", then: "" };
// The group that is open: its key says of which run it is, and `columns` has what is shown of each ticket.
let opened = { key: "", rows: [], columns: new Map() };

async function lookAtTranscripts() {
  const wanted = Object.fromEntries(FILTERS.map((name) => [name, find(name).value.trim()]));
  const cut = wanted.end.indexOf("/");
  wanted.reason = cut < 0 ? "" : wanted.end.slice(cut + 1);
  wanted.end = cut < 0 ? wanted.end : wanted.end.slice(0, cut);
  const run = state.run, page = results.page;
  let found;
  try {
    found = await ask("api/results", { run, page, ...wanted });
  } catch (error) {
    // What is shown is of other filters.
    if (error.isRefusal) { forgetList(); results.shown = ""; }
    throw error;
  }
  if (run !== state.run) return;
  if (page && !found.rows.length && found.total) { results.page = 0; return lookAtTranscripts(); }
  if (found.trouble) trouble(found.trouble);
  Object.assign(results, { rows: found.rows, pages: found.pages });
  showEnds(found.reasons);
  const reading = found.reading ? " · reading the archive" : "";
  find("count").textContent = `${number(found.total, 0)} result${found.total === 1 ? "" : "s"}, ${number(found.right, 0)} right${reading}`;
  find("page-number").textContent = found.pages > 1 ? `${page + 1} of ${number(found.pages, 0)}` : "";
  find("page-before").hidden = find("page-after").hidden = found.pages < 2;
  find("page-before").disabled = page === 0;
  find("page-after").disabled = page >= found.pages - 1;
  const shown = JSON.stringify([found.rows, results.ticket, found.reading]);
  if (shown !== results.shown) {
    const focused = document.activeElement ? document.activeElement.dataset.ticket : undefined;
    find("list").replaceChildren(...(found.rows.length ? found.rows.map(item) : [nothing(wanted, found)]));
    const again = focused && find("list").querySelector(`[data-ticket="${focused}"]`);
    if (again) again.focus({ preventScroll: true });
  }
  results.shown = shown;
  if (results.then && found.rows.length) {
    const row = found.rows.at(results.then === "first" ? 0 : -1);
    results.then = "";
    return openResult(row.ticket, row.group);
  }
  await lookAtGroup();
}

function nothing(wanted, found) {
  const isFiltered = Object.values(wanted).some(Boolean);
  const text = found.reading ? "the archive is being read" : isFiltered ? "No result is like that." : "No result is here yet. Results lie in the run's folder on the learner's host.";
  return element("p", text, { className: "empty" });
}

function showEnds(reasons) {
  const select = find("end"), value = select.value;
  const options = [["", "any end"], ...Object.entries(ENDS)];
  for (const [end, reason, count] of reasons) if (reason) options.push([`${end}/${reason}`, `${end}: ${reason} (${count})`]);
  // One that a link names may not be there yet.
  if (!options.some(([of]) => of === value)) options.push([value, value]);
  const key = JSON.stringify(options);
  if (select.dataset.key === key) return;
  select.dataset.key = key;
  select.replaceChildren(...options.map(([of, text]) => element("option", text, { value: of })));
  select.value = value;
}

function verdict(row) {
  const { badge } = TranscriptView;
  if (row.correct === null) return badge("failed", "wrong");
  return badge(row.correct ? "right" : "wrong", row.correct ? "right" : "wrong");
}

function item(row) {
  const { badge, element: make } = TranscriptView;
  const calls = row.calls ? [badge(TranscriptView.count(row.calls, "call"), "code")] : [];
  const step = row.step === null ? [] : [`step ${row.step}`];
  const made = element("button", [
    make("span", "line", verdict(row), make("b", "", row.problem || `ticket ${row.ticket}`), make("span", "push", ...calls)),
    make("span", "what", [...step, row.reason || ENDS[row.end], `ticket ${row.ticket}`, TranscriptView.count(row.length, "token")].join(" · ")),
  ], { className: "item", onclick: () => openResult(row.ticket, row.group) });
  made.dataset.ticket = row.ticket;
  made.setAttribute("aria-pressed", String(row.ticket === results.ticket));
  return made;
}

function openResult(ticket, group) {
  Object.assign(results, { ticket, group, shown: "" });
  remember(true);
  look();
}

// --- the group ---------------------------------------------------------------------------------------------------------

const watched = new IntersectionObserver((seen) => {
  for (const { target, isIntersecting } of seen) {
    const column = opened.columns.get(Number(target.dataset.ticket));
    if (!column || column.box !== target) continue;
    column.isVisible = isIntersecting;
    fill(column);
  }
}, { rootMargin: "300px" });

async function lookAtGroup() {
  const { ticket } = results, run = state.run;
  document.body.classList.toggle("reading", ticket !== null);
  if (ticket === null) return;
  const isStill = () => run === state.run && ticket === results.ticket;
  let rows;
  try {
    if (results.group === null) {
      const { group } = await ask("api/transcript", { run, ticket });
      if (!isStill()) return;
      results.group = group;
    }
    rows = await ask("api/group", { run, group: results.group });
  } catch (error) {
    if (isStill() && !opened.key) find("group").replaceChildren(backToResults(), element("p", told(error), { className: "empty" }));
    throw error;
  }
  if (!isStill()) return;
  const key = JSON.stringify([run, results.group]);
  if (key !== opened.key) openGroup(key, run);
  showGroup(rows);
}

function backToResults() { return element("button", "← results", { className: "back", onclick: closeResult }); }

// Draws an empty group, whose columns `showGroup` fills.
function openGroup(key, run) {
  watched.disconnect();
  opened = { key, run, rows: [], columns: new Map(), chosen: null };
  const tint = element("select", Object.entries(TINTS).map(([value, text]) => element("option", text, { value })), {
    id: "tint", "aria-label": "Colour tokens by", onchange: (event) => { results.tint = event.target.value; remember(); retint(); },
  });
  tint.value = results.tint;
  const bar = [backToResults(), element("h2", "", { id: "problem" }), element("span", "", { id: "of-group", className: "told" }),
    element("label", ["colour tokens by ", tint]), element("span", "", { id: "legend", className: "legend" })];
  find("group").replaceChildren(element("div", bar, { className: "bar" }), element("div", "", { id: "question" }),
    element("div", "", { id: "columns", tabIndex: 0, role: "group", "aria-label": "Responses" }));
}

function showGroup(rows) {
  const known = rows.find((row) => row.problem) || rows[0];
  find("problem").textContent = known ? known.problem || `group ${results.group}` : "no such group";
  find("of-group").textContent = `group ${results.group} · ${rows.filter((row) => row.correct).length} of ${rows.length} right`;
  const scale = largestAdvantage(rows) !== largestAdvantage(opened.rows);
  opened.rows = rows;
  for (const row of rows) {
    const column = opened.columns.get(row.ticket) || newColumn(row.ticket);
    const text = JSON.stringify(row);
    if (column.text !== text) {
      // What a step made of its tokens comes with the step.
      Object.assign(column, { row, text, found: null, asked: null });
      column.head.replaceChildren(...head(row));
      fill(column);
    }
    column.box.classList.toggle("chosen", row.ticket === results.ticket);
  }
  const columns = find("columns");
  const boxes = rows.map((row) => opened.columns.get(row.ticket).box);
  if (boxes.some((box, at) => columns.children[at] !== box)) columns.replaceChildren(...boxes);
  if (scale) retint();
  showLegend();
  if (opened.chosen !== results.ticket) {
    opened.chosen = results.ticket;
    const chosen = opened.columns.get(results.ticket);
    if (chosen) columns.scrollLeft = chosen.box.offsetLeft - columns.offsetLeft - 12;
  }
}

function newColumn(ticket) {
  const made = { head: element("div", "", { className: "facts" }), body: element("div", "loading", { className: "response" }), found: null, asked: null, isVisible: false };
  made.box = element("article", [made.head, made.body], { className: "column" });
  made.box.dataset.ticket = ticket;
  opened.columns.set(ticket, made);
  watched.observe(made.box);
  return made;
}

function head(row) {
  const { badge } = TranscriptView;
  const facts = [verdict(row), badge(`ticket ${row.ticket}`), badge(row.step === null ? "waits" : `step ${row.step}`)];
  if (row.advantage !== null) facts.push(badge(`advantage ${row.advantage > 0 ? "+" : ""}${number(row.advantage, 3)}`, row.advantage > 0 ? "right" : row.advantage < 0 ? "wrong" : ""));
  if (row.end !== "trained" && row.end !== "waiting") facts.push(badge(row.reason ? `${ENDS[row.end]}: ${row.reason}` : ENDS[row.end], "wrong"));
  if (row.reward !== null) facts.push(badge(`reward ${number(row.reward, 2)}`));
  facts.push(badge(TranscriptView.count(row.length, "token")));
  if (row.calls) facts.push(badge(TranscriptView.count(row.calls, "call"), "code"));
  if (row.failed_calls) facts.push(badge(TranscriptView.count(row.failed_calls, "failed call"), "wrong"));
  if (row.cut) facts.push(badge("cut by the length limit", "wrong"));
  if (row.staleness) facts.push(badge(`${TranscriptView.count(row.staleness, "version")} behind`));
  facts.push(badge(row.actor + (row.attempts > 1 ? `, attempt ${row.attempts}` : "")));
  return facts;
}

// The texts of a column are fetched when it comes into view, and again where that failed.
async function fill(column) {
  if (!column.isVisible || column.found || column.asked) return;
  const { row, text } = column, { run } = opened;
  column.asked = text;
  try {
    const found = await ask("api/transcript", { run, ticket: row.ticket });
    if (column.asked !== text) return;
    column.found = found;
    if (opened.columns.get(row.ticket) !== column) return;
    write(column);
    showQuestion();
  } catch (error) {
    if (column.asked !== text) return;
    column.body.replaceChildren(element("p", told(error), { className: "missing" }));
    setTimeout(() => { if (column.asked === text) { column.asked = null; fill(column); } }, EVERY_MS);
  }
}

function write({ found, body }) {
  const { element: make } = TranscriptView;
  if (found.detail !== undefined) { body.replaceChildren(make("div", "piece", make("div", "body", found.detail || "no more is known"))); return; }
  const tint = tintOf(found);
  const answer = make("div", "gold", make("span", "label", "taken for the answer"), found.answer === null ? "none" : found.answer);
  const without = results.tint && !tint ? [make("p", "missing", "The step did not train on it, or what it made of its tokens is not kept.")] : [];
  body.replaceChildren(...without, ...found.pieces.map((each) => TranscriptView.piece(each, { tint })), answer);
}

function retint() {
  for (const column of opened.columns.values()) if (column.found) write(column);
  showLegend();
}

function showQuestion() {
  const { drawn, element: make } = TranscriptView;
  const known = [...opened.columns.values()].map((column) => column.found).find((found) => found && found.prompt !== undefined);
  if (!known) return;
  find("question").replaceChildren(element("details", [make("summary", "", "prompt"), make("div", "text", ...drawn(known.prompt, known.marks, {}))]),
    make("div", "gold", make("span", "label", "right answer"), known.gold));
}

// --- keys and fields ---------------------------------------------------------------------------------------------------

function closeGroup() {
  watched.disconnect();
  opened = { key: "", rows: [], columns: new Map() };
  Object.assign(results, { ticket: null, group: null, shown: "" });
  find("group").replaceChildren(element("p", "Choose a result: all responses to its problem are shown side by side.", { className: "empty" }));
}

function closeResult() {
  closeGroup();
  remember(true);
  look();
}

// Of another run nothing that is shown is true.
function forgetResults() {
  closeGroup();
  Object.assign(results, { page: 0, pages: 0, rows: [], then: "" });
  forgetList();
}

function forgetList() {
  find("list").replaceChildren();
  find("count").textContent = "";
}

function turn(by) {
  results.page = Math.max(0, Math.min(results.pages - 1, results.page + by));
  results.shown = "";
  remember();
  look();
}

function next(by) {
  const chosen = results.rows.findIndex((row) => row.ticket === results.ticket);
  // In a live run the one that is chosen may have moved to another page.
  const at = chosen >= 0 ? chosen + by : by > 0 ? 0 : results.rows.length - 1;
  if (at >= results.rows.length) { if (results.page < results.pages - 1) { results.then = "first"; turn(1); } return; }
  if (at < 0) { if (results.page > 0) { results.then = "last"; turn(-1); } return; }
  openResult(results.rows[at].ticket, results.rows[at].group);
  find("list").children[at].scrollIntoView({ block: "nearest" });
}

function filter() { results.page = 0; remember(); look(); }

let typing = 0;
for (const name of ["end", "verdict", "code"]) find(name).onchange = filter;
for (const name of ["search", "step"]) find(name).oninput = () => { clearTimeout(typing); typing = setTimeout(filter, 200); };
// `from`: where to go on from while no step is chosen.
function stepBy(id, by, from) { find(id).value = Math.max(1, (Number(find(id).value) || from) + by); }
find("step-before").onclick = () => { stepBy("step", -1, state.step + 1); filter(); };
find("step-after").onclick = () => { stepBy("step", 1, 0); filter(); };
find("page-before").onclick = () => turn(-1);
find("page-after").onclick = () => turn(1);
