// Signatures: the exact bytes that were sent, bound to the name of their type (docs/formats.md, "Signed content").
import * as crypto from "node:crypto";
import { readFileSync } from "node:fs";
import { message } from "./schema.js";

/** The suites that Node signs with by itself: hash (none for Ed25519) and form of the signature. */
const SUITES = {
  ES256: { hash: "sha256", dsaEncoding: "ieee-p1363" },
  EdDSA: { hash: null, dsaEncoding: undefined },
};
export const SUITE_NAMES = Object.keys(SUITES);
const RECEIPT_TYPE = "application/vnd.erxhub.v1.Receipt";
const HASH_SIZE = 32;
const SIGNATURE_SIZE = 64;

export const sha256 = (bytes) => crypto.createHash("sha256").update(bytes).digest();

/** The bytes that a signature covers: DSSE version 1. */
export function encoding(type, payload) {
  const name = Buffer.from(type);
  return Buffer.concat([Buffer.from(`DSSEv1 ${name.length} `), name, Buffer.from(` ${payload.length} `), payload]);
}

/** The public key of a registry record; throws for a key that is none. */
function publicKey(suite, raw) {
  const part = (from, to) => raw.subarray(from, to).toString("base64url");
  if (suite === "EdDSA" && raw.length === 32) {
    return crypto.createPublicKey({ key: { kty: "OKP", crv: "Ed25519", x: part(0) }, format: "jwk" });
  }
  if (suite === "ES256" && raw.length === 65 && raw[0] === 4) {
    const key = { kty: "EC", crv: "P-256", x: part(1, 33), y: part(33) };
    return crypto.createPublicKey({ key, format: "jwk" });
  }
  throw new Error(`no public key of the suite ${suite}`);
}

export function verify(suite, raw, bytes, signature) {
  if (!SUITES[suite] || signature.length !== SIGNATURE_SIZE) return false;
  try {
    const { hash, dsaEncoding } = SUITES[suite];
    return crypto.verify(hash, bytes, { key: publicKey(suite, raw), dsaEncoding }, signature);
  } catch {
    return false;
  }
}

/** A private key of this pharmacy or of its staff. */
export class SigningKey {
  constructor(suite, pemPath) {
    if (!SUITES[suite]) throw new Error(`this product has no suite ${suite}`);
    this.suite = suite;
    this.key = crypto.createPrivateKey(readFileSync(pemPath));
    const { x, y } = crypto.createPublicKey(this.key).export({ format: "jwk" });
    const parts = [x, y].filter(Boolean).map((part) => Buffer.from(part, "base64url"));
    const raw = Buffer.concat(suite === "ES256" ? [Buffer.from([4]), ...parts] : parts);
    this.id = sha256(Buffer.concat([Buffer.from(`${suite}\0`), raw])).toString("hex").slice(0, 32);
  }

  /** The statement under this key: its bytes are written once, signed and sent. */
  sign(type, statement) {
    const payload = message(type).serialize(statement);
    const payloadType = `application/vnd.erxhub.v1.${type}`;
    const { hash, dsaEncoding } = SUITES[this.suite];
    const signature = crypto.sign(hash, encoding(payloadType, payload), { key: this.key, dsaEncoding });
    return { payload_type: payloadType, payload, signatures: [{ key_id: this.id, signature }] };
  }
}

/** Why a receipt proves nothing: MISSING, MALFORMED, UNKNOWN_KEY or SIGNATURE; "" for a good one. */
export function receiptFault(receipt, keys) {
  if (!receipt) return "MISSING";
  const fits = ({ stream_key: stream, leaf_hash: leaf }) => stream.length === HASH_SIZE && leaf.length === HASH_SIZE;
  if (!receipt.entries.every(fits)) return "MALFORMED";
  const key = keys[receipt.key_id];
  if (!key) return "UNKNOWN_KEY";
  const u32 = (value) => Buffer.from(value.toString(16).padStart(8, "0"), "hex");
  const u64 = (value) => Buffer.from(BigInt(value).toString(16).padStart(16, "0"), "hex");
  const origin = Buffer.from(receipt.origin);
  const payload = Buffer.concat([
    u32(origin.length),
    origin,
    u64(receipt.recorded_at_ms),
    u64(receipt.max_merge_delay_ms),
    u32(receipt.entries.length),
    ...receipt.entries.flatMap((entry) => [entry.stream_key, u64(entry.version), entry.leaf_hash]),
  ]);
  return verify("EdDSA", Buffer.from(key, "hex"), encoding(RECEIPT_TYPE, payload), receipt.signature) ? "" : "SIGNATURE";
}
