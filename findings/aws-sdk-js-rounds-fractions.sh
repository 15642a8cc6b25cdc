#!/usr/bin/env bash
# @aws-sdk/util-dynamodb 3.996.9 (and client-dynamodb's types): what unmarshall() refuses of numbers, and what it rounds without a word.
#
# A number of DynamoDB has up to 38 digits, and a number of JavaScript 53 bits. unmarshall() takes {wrapNumbers: true} for numbers as text.
#
# Guess: without it, a number that a JavaScript number cannot hold is refused, or becomes a bigint: so its error says for large ones.
# Seen:  only what is beyond 2 to the 53rd is looked at. A whole number there becomes a bigint; one with a fraction or an exponent is refused.
#        Below, a fraction is rounded: 38 digits to 17, 4503599627370497.5 to 4503599627370498, which is a whole number. With wrapNumbers all are
#        exact. And marshall() refuses a whole number above 2 to the 53rd, but writes the rounded fraction back, so an item that is read and
#        written again has another value.
set -euo pipefail
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
cd "$work"
npm init --yes >/dev/null
npm install --silent --no-audit --no-fund @aws-sdk/util-dynamodb@3.996.9 >/dev/null
cat >look.mjs <<'JAVASCRIPT'
import { marshall, unmarshall } from "@aws-sdk/util-dynamodb";
import { readFileSync } from "node:fs";

const { version } = JSON.parse(readFileSync("node_modules/@aws-sdk/util-dynamodb/package.json"));
console.log("@aws-sdk/util-dynamodb", version);
// number -> as it comes, and as it is when it is written again
const expected = {
  "9007199254740993": "bigint 9007199254740993, again 9007199254740993",
  "9007199254740993.5": "refused",
  "1E+125": "refused",
  "0.12345678901234567890123456789012345678": "number 0.12345678901234568, again 0.12345678901234568",
  "123456.7890123456789": "number 123456.78901234567, again 123456.78901234567",
  "4503599627370497.5": "number 4503599627370498, again 4503599627370498",
  "1.5": "number 1.5, again 1.5",
};
let wrong = 0;
for (const [text, stated] of Object.entries(expected)) {
  let seen;
  try {
    const { value } = unmarshall({ value: { N: text } });
    seen = `${typeof value} ${value}, again ${marshall({ value }).value.N}`;
  } catch (error) {
    seen = error.message.includes("wrapNumbers") ? "refused" : error.message;
  }
  const wrapped = unmarshall({ value: { N: text } }, { wrapNumbers: true }).value.toString();
  console.log(`${text}: ${seen}; wrapped: ${wrapped}`);
  if (seen !== stated || wrapped !== text) {
    console.log("    CHANGED; it was:", stated);
    wrong = 1;
  }
}
console.log(wrong ? "CHANGED" : "as stated above");
process.exit(wrong);
JAVASCRIPT
node look.mjs
