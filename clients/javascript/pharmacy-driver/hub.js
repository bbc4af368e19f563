// The connection to the hub: deadlines, repeats with the same bytes, and what a failed call means.
import { readFileSync } from "node:fs";
import grpc from "@grpc/grpc-js";
import { hasUnknownEnum, message, method } from "./schema.js";
import { receiptFault } from "./signing.js";

const ATTEMPTS_MAX = 6;
// A hub that does not answer in time is asked twice; what is open then is finished later.
const SLOW_ATTEMPTS_MAX = 2;
// So often is a reply asked for that proves nothing: the repeat of an accepted request changes nothing.
const DOUBTED_MAX = 3;
const BACKOFF_MS = 40;
const BACKOFF_MAX_MS = 640;
const FIRST_NEWS_MS = 600;
const NEXT_NEWS_MS = 250;
const BUSY = new Set([grpc.status.UNAVAILABLE, grpc.status.RESOURCE_EXHAUSTED]);
const LOCAL_TLS = /unable to (verify|get)|self.signed certificate|certificate has expired|altnames|bad certificate|unknown ca/i;

/** The act is refused for good: by the hub, or by the product itself ("product"), with a stable code. */
export class Rejected extends Error {
  constructor(code, { by = "product", reason = "", field = "", step = "" } = {}) {
    super(`${code} ${reason}`);
    Object.assign(this, { code, by, reason, field, step });
  }
}

/** Nobody here can tell whether the act was done; it stays in the outbox. */
export class OutcomeUnknown extends Error {
  constructor(code) {
    super(code);
    this.code = code;
  }
}

/** What the hub said of a failed call: {code, busy, retryAfterMs, field}, or null where it said nothing itself. */
function refusal(error) {
  const [bytes] = error.metadata?.get("grpc-status-details-bin") ?? [];
  if (!bytes) return null;
  const found = { busy: BUSY.has(error.code), retryAfterMs: 0, field: "" };
  for (const detail of message("google.rpc.Status").deserialize(bytes).details) {
    const type = detail.type_url.split("/").pop();
    if (type === "google.rpc.ErrorInfo") {
      const info = message(type).deserialize(detail.value);
      if (info.domain === "erxhub") found.code = info.reason;
    } else if (type === "google.rpc.RetryInfo") {
      const { seconds, nanos } = message(type).deserialize(detail.value).retry_delay ?? { seconds: 0, nanos: 0 };
      found.retryAfterMs = Number(seconds) * 1000 + nanos / 1e6;
    } else if (type === "google.rpc.BadRequest") {
      found.field = message(type).deserialize(detail.value).field_violations[0]?.field ?? "";
    }
  }
  return found.code ? found : null;
}

/** What a failed call means for the act behind it. */
function meaning(error) {
  if (error instanceof OutcomeUnknown) return error;
  const said = refusal(error);
  if (said) {
    return said.busy ? new OutcomeUnknown(said.code) : new Rejected(said.code, { by: "hub", field: said.field, reason: error.details });
  }
  const status = grpc.status[error.code] ?? "UNKNOWN";
  if (status === "UNIMPLEMENTED") return new Rejected(status, { reason: "the hub does not have this method" });
  if (status === "UNAVAILABLE" && LOCAL_TLS.test(error.details)) return new Rejected("TLS_REFUSED", { reason: error.details });
  return new OutcomeUnknown(status === "UNAVAILABLE" ? "HUB_UNREACHABLE" : status);
}

export class Hub {
  #client;
  #receiptKeys;
  #timeoutMs;
  #waitScale;

  constructor(configuration) {
    const pem = (name) => readFileSync(configuration[`${name}_pem_path`]);
    const options = {
      // gRPC knows nothing of the wait that the hub asks for, so it must not repeat a call.
      "grpc.enable_retries": 0,
      "grpc.initial_reconnect_backoff_ms": 50,
      "grpc.max_reconnect_backoff_ms": 500,
      "grpc.max_receive_message_length": 16 * 1024 * 1024,
    };
    if (configuration.server_name) {
      options["grpc.ssl_target_name_override"] = configuration.server_name;
      options["grpc.default_authority"] = configuration.server_name;
    }
    const credentials = grpc.credentials.createSsl(pem("ca"), pem("key"), pem("cert"));
    this.#client = new grpc.Client(configuration.target, credentials, options);
    this.#receiptKeys = configuration.receipt_keys ?? {};
    this.#timeoutMs = configuration.timeout_ms || 5000;
    this.#waitScale = configuration.wait_scale || 1;
  }

  close() {
    this.#client.close();
  }

  /** The bytes of the reply to a command; the same request each time. Throws Rejected, OutcomeUnknown. */
  async command(name, request) {
    let slow = 0;
    let doubted = 0;
    for (let attempt = 1; ; attempt += 1) {
      let askedMs = 0;
      try {
        const bytes = await this.#once(method(name).path, request);
        const fault = this.#doubt(name, bytes);
        if (!fault || (fault === "ENUM" && doubted + 1 === DOUBTED_MAX)) return bytes;
        doubted += 1;
        if (doubted === DOUBTED_MAX) throw new OutcomeUnknown(`RECEIPT_${fault}`);
      } catch (error) {
        const meant = meaning(error);
        slow += error.code === grpc.status.DEADLINE_EXCEEDED ? 1 : 0;
        const hopeless = meant instanceof Rejected || error === meant || slow === SLOW_ATTEMPTS_MAX;
        if (hopeless || attempt === ATTEMPTS_MAX) throw meant;
        askedMs = refusal(error)?.retryAfterMs ?? 0;
      }
      await this.backOff(attempt, askedMs);
    }
  }

  /** Why a reply proves nothing; "" for a good one. */
  #doubt(name, bytes) {
    const { responseType } = method(name);
    const reply = responseType.deserialize(bytes);
    return receiptFault(reply.receipt, this.#receiptKeys) || (hasUnknownEnum(responseType, reply) ? "ENUM" : "");
  }

  #once(path, request) {
    const same = (bytes) => bytes;
    const options = { deadline: Date.now() + this.#timeoutMs };
    return new Promise((resolve, reject) => {
      this.#client.makeUnaryRequest(path, same, same, request, new grpc.Metadata(), options, (error, bytes) =>
        error ? reject(error) : resolve(bytes),
      );
    });
  }

  /**
   * Gives each message of a watch to `take` until none came for a moment (null), or until the watch was cut or `take`
   * returned false (the wait that the hub asks for, ms). Throws Rejected.
   */
  watch(name, request, take) {
    const { path, requestSerialize, responseDeserialize } = method(name);
    return new Promise((resolve, reject) => {
      const call = this.#client.makeServerStreamRequest(path, requestSerialize, responseDeserialize, request);
      let over = false;
      const end = (settle, value) => {
        if (over) return;
        over = true;
        clearTimeout(timer);
        call.cancel();
        settle(value);
      };
      let timer = setTimeout(() => end(resolve, null), FIRST_NEWS_MS);
      call.on("data", (news) => {
        if (over) return;
        clearTimeout(timer);
        timer = setTimeout(() => end(resolve, null), NEXT_NEWS_MS);
        if (!take(news)) end(resolve, 0);
      });
      call.on("status", ({ code }) => code === grpc.status.OK && end(resolve, 0));
      call.on("error", (error) => {
        const meant = meaning(error);
        if (meant instanceof Rejected) end(reject, meant);
        else end(resolve, refusal(error)?.retryAfterMs ?? 0);
      });
    });
  }

  /** Waits before the next attempt: as long as the hub asked for at least, and never in step with others. */
  backOff(failed, askedMs) {
    const ownMs = Math.min(BACKOFF_MAX_MS, BACKOFF_MS << (failed - 1));
    const waitMs = Math.max(ownMs, askedMs * this.#waitScale) * (1 + Math.random() / 4);
    return new Promise((resolve) => setTimeout(resolve, Math.ceil(waitMs) + 1));
  }
}
