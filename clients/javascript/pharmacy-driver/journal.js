// What the product remembers across a crash: named values in an append-only file, one JSON line for each change.
import * as fs from "node:fs";
import { join } from "node:path";

export class Journal {
  #path;
  #file;
  #values = new Map();

  constructor(folder) {
    fs.mkdirSync(folder, { recursive: true });
    this.#path = join(folder, "journal.jsonl");
    const whole = fs.existsSync(this.#path) ? fs.readFileSync(this.#path) : Buffer.alloc(0);
    // A line that a crash tore has no end, and counts as not written.
    const end = whole.lastIndexOf("\n") + 1;
    for (const line of whole.subarray(0, end).toString("utf8").split("\n").filter(Boolean)) this.#set(...JSON.parse(line));
    this.#file = fs.openSync(this.#path, "a");
    fs.ftruncateSync(this.#file, end);
  }

  get(name) {
    return this.#values.get(name) ?? null;
  }

  /** Keeps a value (null forgets it); `durable`: it is on the disk when this returns. */
  put(name, value, { durable = false } = {}) {
    this.#set(name, value);
    fs.writeSync(this.#file, `${JSON.stringify([name, value])}\n`);
    if (durable) fs.fsyncSync(this.#file);
  }

  /** [name, value] of everything whose name begins so, in order of name. */
  items(prefix) {
    return [...this.#values].filter(([name]) => name.startsWith(prefix)).sort(([a], [b]) => (a < b ? -1 : 1));
  }

  /** Forgets every value whose name does not stay. */
  forget(stays) {
    fs.closeSync(this.#file);
    for (const name of [...this.#values.keys()]) if (!stays(name)) this.#values.delete(name);
    fs.writeFileSync(`${this.#path}.new`, [...this.#values].map((pair) => `${JSON.stringify(pair)}\n`).join(""));
    fs.renameSync(`${this.#path}.new`, this.#path);
    this.#file = fs.openSync(this.#path, "a");
  }

  close() {
    fs.closeSync(this.#file);
  }

  #set(name, value) {
    if (value === null) this.#values.delete(name);
    else this.#values.set(name, value);
  }
}
