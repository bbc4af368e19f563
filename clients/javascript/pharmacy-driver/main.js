#!/usr/bin/env node
// The driver protocol on standard input and output: which operation is which act of the product.
import { createInterface } from "node:readline";
import { OutcomeUnknown, Rejected } from "./hub.js";
import { Pharmacy } from "./pharmacy.js";
import { SUITE_NAMES } from "./signing.js";

const ACTS = [
  ...["list_available", "download", "release", "review", "settle", "dispense", "hand_over", "undo", "reverse"],
  ...["start_delivery", "delivery_step", "sign_delivery"],
];
const OPTIONS = ["wait_scale", "kill", "cursor", "receipts", "checks_signatures", "settle.lines", "dispense.lots"];

/** The time that the product was told last. */
const clock = { toldMs: null, nowMs: () => clock.toldMs ?? Date.now() };
let product = null;

function configured() {
  if (!product) throw new Error("configure comes first");
  return product;
}

const operations = {
  describe: () => ({
    name: "erxhub reference pharmacy (Node)",
    version: "1.0.0",
    role: "pharmacy",
    protocol: 1,
    features: [...Object.keys(operations), ...OPTIONS],
    suites: SUITE_NAMES,
    clock: "told",
  }),
  configure: (args) => {
    product?.close();
    product = null;
    product = new Pharmacy(args, clock);
    return { outcome: "ok" };
  },
  reset: () => {
    configured().forget();
    return { outcome: "ok" };
  },
  resume: async () => ({ outcome: "ok", resolved: await configured().resume() }),
  pull_events: async () => {
    try {
      const events = await configured().pull();
      return { outcome: "ok", events, state: product.known(), cursor: product.journal.get("cursor") ?? "" };
    } catch (error) {
      if (error instanceof OutcomeUnknown) return { outcome: "unknown", code: error.code };
      if (error instanceof Rejected) return { outcome: "rejected", code: error.code, by: error.by, reason: error.reason };
      throw error;
    }
  },
  shutdown: () => ({ outcome: "ok" }),
  ...Object.fromEntries(ACTS.map((verb) => [verb, (args) => configured().perform(verb, args)])),
};

async function answer(line) {
  let request;
  try {
    request = JSON.parse(line);
    if (!Number.isInteger(request?.id) || typeof request.op !== "string") throw new Error("a request has id and op");
  } catch (error) {
    return { id: null, error: { code: "bad_request", message: String(error) } };
  }
  const { id, op, args = {}, at_ms: atMs } = request;
  if (!Object.hasOwn(operations, op)) return { id, error: { code: "unsupported", message: `no operation ${op}` } };
  if (Number.isInteger(atMs)) clock.toldMs = atMs;
  try {
    return { id, result: await operations[op](args) };
  } catch (error) {
    console.error(error);
    return { id, error: { code: op === "configure" || !product ? "bad_request" : "crash", message: String(error) } };
  }
}

// One operation after the other, in the order in which they came.
for await (const line of createInterface({ input: process.stdin, crlfDelay: Infinity })) {
  if (!line.trim()) continue;
  const given = await answer(line);
  await new Promise((written) => process.stdout.write(`${JSON.stringify(given)}\n`, written));
  if (given.result && JSON.parse(line).op === "shutdown") break;
}
product?.close();
process.exit(0);
