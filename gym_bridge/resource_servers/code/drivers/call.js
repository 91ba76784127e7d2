// The program that calls one function of solution.js: JSON in on stdin, one record of JSON out on descriptor 3.
// It runs inside the sandbox, beside the code that it calls, and is trusted with nothing; it knows no expected value.
"use strict";
const fs = require("fs");

async function main() {
  const call = JSON.parse(fs.readFileSync(0, "utf8"));
  const source = fs.readFileSync("solution.js", "utf8");
  const body = `${source}\n;return typeof ${call.function} === "undefined" ? undefined : ${call.function};`;
  const solution = { exports: {} };
  const local = new Function("module", "exports", "require", body)(solution, solution.exports, require);
  const found = local === undefined ? solution.exports[call.function] : local;
  const value = await found(...call.args);
  fs.writeSync(3, JSON.stringify({ value: value === undefined ? null : value }));
  process.exit(0);
}

main();
