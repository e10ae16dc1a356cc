"use strict";
// Draws a transcript. Everything that comes from one becomes a text node, never markup; tags, classes and attributes are the
// project's own.

const TranscriptView = (() => {
  const KINDS = { code: "code, by the model", output: "output, inserted", hallucinated: "output that the model made up" };
  const MATHML = "http://www.w3.org/1998/Math/MathML";

  function element(tag, className, ...content) {
    const made = document.createElement(tag);
    made.className = className;
    made.append(...content);
    return made;
  }

  function badge(text, kind) { return element("span", "badge " + (kind || ""), text); }

  function count(number, what) { return number + " " + what + (number === 1 ? "" : "s"); }

  // The text, with what is looked for marked.
  function marked(text, wanted) {
    if (!wanted) return [text];
    const parts = [], lower = text.toLowerCase();
    let begin = 0;
    // A lower case of another length would shift the places.
    if (lower.length !== text.length) return [text];
    for (let at = lower.indexOf(wanted); at >= 0; at = lower.indexOf(wanted, begin)) {
      parts.push(text.slice(begin, at), element("mark", "", text.slice(at, at + wanted.length)));
      begin = at + wanted.length;
    }
    return [...parts, text.slice(begin)];
  }

  function formula([tag, attributes, ...children]) {
    const made = document.createElementNS(MATHML, tag);
    for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
    made.append(...children.map((child) => typeof child === "string" ? child : formula(child)));
    return made;
  }

  // Where a text begins and ends without blank lines, which are no part of what is read. No regular expression: it would try
  // the end at every blank line, in time that grows with their square.
  function edges(text) {
    let begin = 0, end = text.length;
    while (begin < end && text[begin] === "\n") begin++;
    while (end > begin && text[end - 1] === "\n") end--;
    return [begin, end];
  }

  // Programs in colours, formulas as formulas; as it was written while one searches in it (`wanted`), or asks for that
  // (`source`).
  function drawn(text, marks, { wanted, source }) {
    let [begin, end] = edges(text);
    if (wanted || source) return marked(text.slice(begin, end), wanted);
    const parts = [];
    for (const [from, to, what] of marks) {
      const written = text.slice(from, Math.min(to, end));
      const made = typeof what === "string" ? element("span", what, written) : formula(what);
      if (typeof what !== "string") made.setAttribute("title", written);
      parts.push(text.slice(begin, from), made);
      begin = Math.min(to, end);
    }
    return [...parts, text.slice(begin, end)];
  }

  // Token by token: `tint` says of a response position {colour, title}, or null. Neighbours that look alike are one.
  function tinted(text, stretches, tint) {
    const [begin, end] = edges(text), parts = [];
    let at = 0, open = null;
    for (const [length, position] of stretches) {
      const written = text.slice(Math.max(at, begin), Math.min(at + length, end));
      at += length;
      if (!written) continue;
      const look = tint(position);
      if (open && open.look?.colour === look?.colour && open.look?.title === look?.title) { open.text += written; continue; }
      open = { look, text: written };
      parts.push(open);
    }
    return parts.map(({ look, text: written }) => {
      if (!look) return written;
      const made = element("span", "token", written);
      made.style.backgroundColor = look.colour;
      made.title = look.title;
      return made;
    });
  }

  function piece([kind, text, label, marks, stretches], options) {
    const made = element("div", "piece " + kind);
    if (kind in KINDS) made.append(element("span", "label", KINDS[kind] + (label ? " (" + label + ")" : "")));
    const byToken = options.tint && stretches.length;
    made.append(element("div", "body", ...(byToken ? tinted(text, stretches, options.tint) : drawn(text, marks, options))));
    return made;
  }

  return { badge, count, drawn, element, marked, piece };
})();
