"use strict";
// What all parts of the page share. Whatever comes from a run is put into text nodes.

const EVERY_MS = 2000;
const ANSWER_MS = 8000;
const POINTS = 1500;
const COLOURS = ["#2f6fdb", "#d9662b", "#2f9e6e", "#9b51d6", "#c2365c", "#8a7a12"];
const FIRST = ["learner/accuracy", "learner/code_ratio", "learner/response_length", "learner/staleness_mean", "learner/behaviour_kl",
  "learner/step_seconds"];
const token = new URLSearchParams(location.search).get("token") || "";
const colour = (run) => COLOURS[state.runs.indexOf(run) % COLOURS.length];
const find = (id) => document.getElementById(id);

const state = { runs: [], shown: new Set(), run: null, axis: "step", smooth: 0, log: false, fit: false, curves: [], plots: new Map(),
  view: "run", step: 0 };

async function ask(path, parameters) {
  const query = new URLSearchParams(parameters || {});
  const headers = token ? { Authorization: "Bearer " + token } : {};
  const answer = await fetch(path + "?" + query, { headers, signal: AbortSignal.timeout(ANSWER_MS) });
  if (!answer.ok) throw Object.assign(new Error((await answer.text()) || `the server says ${answer.status}`), { isRefusal: true });
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
