// Writes assignment.json: the vectors that pin the hash for every language.
// An implementation of its own, from design section 4; it shares no code with Python.
// Run: node tests/vectors/generate.mjs
import { createHash } from "node:crypto";
import { writeFileSync } from "node:fs";

const uniform = (...parts) => {
  const digest = createHash("sha256").update(parts.join("\x1f"), "utf8").digest();
  return Number(digest.readBigUInt64BE(0) >> 11n) / 2 ** 53;
};
const segment = (salt, unit) => Math.floor(uniform(salt, unit) * 10000);
const choose = (weights, salt, unit) => {
  const scores = Object.entries(weights)
    .filter(([, weight]) => weight > 0)
    .map(([variant, weight]) => [-Math.log(uniform(salt, unit, variant)) / weight, variant]);
  scores.sort((a, b) => a[0] - b[0] || (a[1] < b[1] ? -1 : 1));
  return scores[0][1];
};

const units = ["shopper-1", "shopper-2", "42", "ana@example.com", "Zoë", "买家-7", "👟", "a b", "x".repeat(128)];
const salts = ["variant:0f3a", "traffic:77", "layer:default"];
const allocations = [
  { control: 0.5, treatment: 0.5 },
  { control: 0.1, als: 0.6, item_knn: 0.3 },
  { control: 0, treatment: 1 },
  { a: 0.05, b: 0.05, c: 0.05, d: 0.85 },
];
const document = {
  explanation: {
    uniform:
      "SHA-256 of the UTF-8 text of the parts joined by U+001F; the first 8 bytes as a big-endian integer, shifted right by 11 bits, divided by 2^53; in [0, 1).",
    segment: "floor(uniform(layer salt, unit) * 10000).",
    choose:
      "for each variant with weight > 0, score = -ln(uniform(salt, unit, variant)) / weight; the smallest score wins. The salt of epoch n of a bandit is the variant salt, a colon, and n.",
  },
  uniform: salts.flatMap((salt) => units.map((unit) => ({ parts: [salt, unit], expected: uniform(salt, unit) }))),
  segment: units.map((unit) => ({ salt: "layer:default", unit, expected: segment("layer:default", unit) })),
  choose: allocations.flatMap((weights) =>
    ["variant:0f3a", "variant:0f3a:3"].flatMap((salt) =>
      units.map((unit) => ({ weights, salt, unit, expected: choose(weights, salt, unit) })),
    ),
  ),
};
writeFileSync(new URL("assignment.json", import.meta.url), JSON.stringify(document, null, 1) + "\n");
