// What every honest product does, whatever its business: keep requests, repeat them, follow the news.
import { join } from "node:path";
import { Hub, OutcomeUnknown, Rejected } from "./hub.js";
import { Journal } from "./journal.js";
import { hasUnknownEnum, method } from "./schema.js";

const DOUBTED_MAX = 3;
const WATCHES_MAX = 12;
const BEIJING_MS = 8 * 3_600_000;

/** One act of the business, made of requests: what was sent is kept, and sent again from there after a crash. */
class Act {
  constructor(product, name) {
    this.product = product;
    this.name = name;
  }

  get record() {
    return this.product.journal.get(this.name);
  }

  /** The id under which a step was sent; "" when it was not. */
  requestId(step) {
    const kept = this.product.journal.get(`${this.name}/${step}/request`);
    return kept ? method(kept.method).requestType.deserialize(Buffer.from(kept.bytes, "base64")).request_id : "";
  }

  /**
   * The reply to one request of the act. `build(requestId)` makes the request, once: after a crash, or when the outcome
   * stayed open, the kept bytes are sent. `again`: ask once more for a reply that proved nothing.
   */
  async step(step, call, build, { again = false } = {}) {
    const { journal, hub } = this.product;
    const place = `${this.name}/${step}`;
    const { requestSerialize, responseDeserialize } = method(call);
    const answered = journal.get(`${place}/reply`);
    if (answered && !again) return responseDeserialize(Buffer.from(answered, "base64"));
    let kept = journal.get(`${place}/request`);
    if (!kept) {
      const bytes = requestSerialize({ request_id: this.product.newRequestId(), ...build() });
      kept = { method: call, bytes: bytes.toString("base64") };
      journal.put(`${place}/request`, kept, { durable: true });
    }
    try {
      const reply = await hub.command(kept.method, Buffer.from(kept.bytes, "base64"));
      journal.put(`${place}/reply`, reply.toString("base64"));
      return responseDeserialize(reply);
    } catch (error) {
      if (error instanceof Rejected) error.step = step;
      throw error;
    }
  }

  close(outcome) {
    this.product.journal.put(this.name, { ...this.record, done: outcome });
  }
}

/** Outbox, connection and news. A subclass has `performers`: its acts by verb, and `news`: its watch. */
export class Product {
  /** Verbs that do not wait for what is open about their prescription. */
  repairs = new Set();

  constructor(configuration, clock) {
    this.configuration = configuration;
    this.clock = clock;
    this.journal = new Journal(join(configuration.state_dir, "pharmacy"));
    this.hub = new Hub(configuration);
  }

  close() {
    this.hub.close();
    this.journal.close();
  }

  /** Forgets everything but what was given away once: request ids, packs. */
  forget() {
    this.journal.forget((name) => name.startsWith("given"));
  }

  /** Institution, Beijing time and a number that the journal counts, so that no id comes twice. */
  newRequestId() {
    const given = this.journal.get("given") ?? 0;
    this.journal.put("given", given + 1);
    const written = new Date(this.clock.nowMs() + BEIJING_MS).toISOString().replace(/\D/g, "").slice(0, 14);
    return `${this.configuration.institution_code}${written}${String(given % 10_000).padStart(4, "0")}`;
  }

  acts() {
    return this.journal.items("act/").filter(([name]) => name.split("/").length === 2).map(([name]) => new Act(this, name));
  }

  /**
   * Does an act, or goes on with the same one whose outcome is open. What is open about the same prescription comes
   * first; while that stays open, the new act waits in the outbox.
   */
  async perform(verb, args) {
    const rxNo = args.rx_no ?? "";
    const kept = JSON.stringify(args);
    for (const act of this.acts().filter(({ record }) => !record.done)) {
      const { record } = act;
      if (record.verb === verb && JSON.stringify(record.args) === kept) return this.#attempt(act);
      const waits = rxNo && record.rx_no === rxNo && !this.repairs.has(verb);
      if (waits && (await this.#attempt(act)).outcome === "unknown") {
        this.#begin(verb, rxNo, args);
        return { outcome: "unknown", code: "QUEUED", rx_no: rxNo };
      }
    }
    return this.#attempt(this.#begin(verb, rxNo, args));
  }

  #begin(verb, rxNo, args) {
    const number = (this.journal.get("acts") ?? 0) + 1;
    this.journal.put("acts", number);
    const name = `act/${String(number).padStart(6, "0")}`;
    this.journal.put(name, { verb, rx_no: rxNo, args });
    return new Act(this, name);
  }

  async #attempt(act) {
    const { verb, rx_no: rxNo, args } = act.record;
    let result;
    try {
      result = { outcome: "ok", ...(await this.performers[verb](act, args)) };
    } catch (error) {
      if (error instanceof OutcomeUnknown) return { outcome: "unknown", code: error.code, rx_no: rxNo };
      if (!(error instanceof Rejected)) throw error;
      const { code, by, reason, field, step } = error;
      result = { outcome: "rejected", code, by, reason, ...(field && { field }), ...(step && { step }) };
    }
    act.close(result.outcome);
    return { ...(rxNo && { rx_no: rxNo }), ...result };
  }

  /** Finishes what is open, oldest first. Stops when the hub still cannot be reached, and leaves the rest. */
  async resume() {
    const resolved = [];
    for (const act of this.acts().filter(({ record }) => !record.done)) {
      const { outcome, code } = await this.#attempt(act);
      resolved.push({ op: act.record.verb, rx_no: act.record.rx_no, outcome, ...(code && { code }) });
      if (outcome === "unknown") break;
    }
    return resolved;
  }

  /** Takes in what happened since the last time; returns the events that are new. The cursor moves only over what came in order. */
  async pull() {
    const fresh = [];
    const { responseType } = method(this.news);
    let begun = this.journal.get("cursor") ?? "";
    let cursor = begun;
    let inOrder = true;
    let reachedMs = 0;
    let doubted = 0;
    const take = (news) => {
      if (hasUnknownEnum(responseType, news) && doubted < DOUBTED_MAX) {
        // Perhaps its way has spoilt it: the same message once more.
        doubted += 1;
        return false;
      }
      const at = Number(news.recorded_at_ms);
      inOrder &&= at >= reachedMs && !this.#isLate(news);
      reachedMs = Math.max(reachedMs, at);
      cursor = news.cursor;
      this.#takeOnce(news, fresh);
      return true;
    };
    for (let watch = 1; ; watch += 1) {
      try {
        const askedMs = await this.hub.watch(this.news, { cursor, from_start: !cursor }, take);
        if (askedMs === null) break;
        if (watch === WATCHES_MAX) throw new OutcomeUnknown("HUB_UNREACHABLE");
        // Behind a message that came too early others may be missing.
        if (!inOrder) cursor = begun;
        await this.hub.backOff(Math.min(watch, 3), askedMs);
      } catch (error) {
        if (error.code !== "PAGE_TOKEN_INVALID" || !cursor) throw error;
        begun = cursor = "";
      }
    }
    this.journal.put("cursor", inOrder ? cursor : begun);
    return fresh;
  }

  /** The newest state that was heard of each prescription. */
  known() {
    return Object.fromEntries(this.journal.items("news/").map(([name, { state }]) => [name.slice(5), state]));
  }

  #isLate(news) {
    const heard = this.journal.get(`news/${news.rx_no}`);
    const version = Number(news.version);
    return heard !== null && version < heard.version && !heard.seen.includes(version);
  }

  #takeOnce(news, fresh) {
    const name = `news/${news.rx_no}`;
    const version = Number(news.version);
    const heard = this.journal.get(name) ?? { version: 0, seen: [], state: {} };
    if (heard.seen.includes(version)) return;
    const state = version > heard.version ? { ...heard.state, ...this.told(news) } : heard.state;
    this.journal.put(name, { version: Math.max(heard.version, version), seen: [...heard.seen, version], state });
    for (const event of news.events) fresh.push({ rx_no: news.rx_no, event, version });
  }
}
