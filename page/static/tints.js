"use strict";
// Colours of tokens: by advantage, by log-probability gap, by weight version.

const TINTS = { "": "code and formulas", advantage: "advantage", log_ratio: "log-probability gap", version: "weight version" };
const VERSIONS = ["#4c7bd0", "#d9662b", "#2f9e6e", "#9b51d6", "#12889c", "#8a7a12"];

function signed(value, strength, above, below) {
  if (value === 0) return "transparent";
  return `rgba(${value > 0 ? above : below}, ${Math.min(0.75, 0.08 + 0.67 * strength).toFixed(2)})`;
}
const GREEN = "46, 158, 110", RED = "205, 62, 50", BLUE = "64, 120, 220", ORANGE = "222, 120, 30";

// One scale for the group.
function largestAdvantage(rows) { return Math.max(1e-9, ...rows.map((row) => row.largest_advantage || 0)); }

// What a token looks like by its position in the response; null where nothing is known of the response's.
function tintOf(found) {
  const plus = (value) => (value > 0 ? "+" : "") + value;
  if (results.tint === "version") {
    const span = (position) => found.versions.find(([, begin, end]) => begin <= position && position < end);
    return (position) => {
      const of = span(position);
      return of ? { colour: versionColour(of[0]) + "55", title: `weights ${of[0]}` } : null;
    };
  }
  if (results.tint === "advantage" && found.advantages) {
    const most = largestAdvantage(opened.rows);
    return (position) => {
      const value = found.advantages[position];
      return value === null ? null : { colour: signed(value, Math.abs(value) / most, GREEN, RED), title: `advantage ${plus(value)}` };
    };
  }
  if (results.tint === "log_ratio" && found.log_ratios) {
    return (position) => {
      const value = found.log_ratios[position];
      if (value === null) return null;
      // From 0.001 on, by tens.
      const strength = Math.min(1, Math.max(0, Math.log10(Math.abs(value) / 1e-3) / 3));
      return { colour: strength ? signed(value, strength, BLUE, ORANGE) : "transparent", title: `log-probability of the learner less the actor's: ${plus(value)}` };
    };
  }
  return null;
}

// A version is EPOCH.STEP. Neighbours differ, and so do those of a learner and of one that went on from an older checkpoint.
function versionColour(version) {
  const [epoch, step] = version.split(".").map(Number);
  return VERSIONS[(3 * epoch + step) % VERSIONS.length];
}

function swatch(colour, text) {
  const box = element("i", "");
  box.style.backgroundColor = colour;
  return element("span", [box, text]);
}

function versionSwatches(rows) {
  const versions = [...new Set(rows.flatMap((row) => row.versions.map(([version]) => version)))];
  return versions.sort((a, b) => Number(a.split(".")[1]) - Number(b.split(".")[1])).map((version) => swatch(versionColour(version), version));
}

function showLegend() {
  const legend = {
    "": () => [],
    version: () => versionSwatches(opened.rows),
    advantage: () => [swatch(`rgba(${GREEN}, .6)`, "above"), swatch(`rgba(${RED}, .6)`, "below 0")],
    log_ratio: () => [swatch(`rgba(${BLUE}, .6)`, "likelier to the learner than to the actor"), swatch(`rgba(${ORANGE}, .6)`, "less likely"), "from 0.001 to 1"],
  };
  find("legend").replaceChildren(...legend[results.tint]());
}
