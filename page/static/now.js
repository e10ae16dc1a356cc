"use strict";
// What is going on in a run.

function showNow(now) {
  state.step = now.step;
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
