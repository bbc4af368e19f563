#!/usr/bin/env node
// Verifies an erxhub bundle offline, from the log's public key alone. Node 18 or newer, no packages, this one file.
//
//   node verify.mjs BUNDLE --log-key VKEY [--policy FILE] [--ca FILE] [--about 'prescription RX_NO']
//   node verify.mjs --batch --log-key VKEY …     stdin: lines {"bundle": base64}; stdout: one verdict a line
//
// It prints each check that it made as a numbered line, and at the end the verdict; on failure the reason code and the
// entry at fault. Exit 0: the bundle holds. Exit 1: it does not. Exit 2: it was called wrongly.
//
// It follows docs/formats.md, whose section "Bundle" gives the order of the checks and their reason codes. It shares no
// code with the hub and believes nothing because the file says so: stream keys, leaf hashes, the map's values and the
// statements' digests are computed here.

import { createHash, createPublicKey, verify as verifySignature, X509Certificate } from 'node:crypto';
import { readFileSync, realpathSync } from 'node:fs';
import { createInterface } from 'node:readline';
import { fileURLToPath } from 'node:url';

// ---- bytes ----

const bytes = (text) => Buffer.from(text, 'utf8');
const concat = (...parts) => Buffer.concat(parts);
const sha256 = (...parts) => {
  const hash = createHash('sha256');
  for (const part of parts) hash.update(part);
  return hash.digest();
};
const u8 = (number) => Buffer.from([number]);
const u32 = (number) => {
  const out = Buffer.alloc(4);
  out.writeUInt32BE(number);
  return out;
};
const u64 = (number) => {
  const out = Buffer.alloc(8);
  out.writeBigUInt64BE(BigInt(number));
  return out;
};
const ZEROS = Buffer.alloc(32);
const EMPTY_ROOT = sha256();
const SIZE_MAX = 2n ** 63n - 1n;
const compare = (a, b) => (a < b ? -1 : a > b ? 1 : 0);

/** Strict UTF-8; throws for anything else. */
const decodeUtf8 = (data) => new TextDecoder('utf-8', { fatal: true, ignoreBOM: true }).decode(data);

/** What a proof or note that does not hold throws; the caller turns it into a reason code. */
class Invalid extends Error {}

/** The bundle is refused: the reason code, and the entry (stream kind, key, version) at fault if it is one's. */
class Refused extends Error {
  constructor(reason, words, place = { kind: '', key: Buffer.alloc(0), version: 0n }) {
    super(words);
    this.reason = reason;
    this.place = place;
  }
}

function ensure(held, words) {
  if (!held) throw new Invalid(words);
}

function readBase64(text) {
  ensure(/^[A-Za-z0-9+/]*={0,2}$/.test(text), 'not base64');
  const data = Buffer.from(text, 'base64');
  ensure(data.toString('base64') === text, 'not base64 in its one form');
  return data;
}

function readDecimal(text) {
  ensure(/^(0|[1-9][0-9]{0,18})$/.test(text) && BigInt(text) <= SIZE_MAX, 'not a decimal number in its one form');
  return BigInt(text);
}

// ---- tree ----

const leafHash = (leaf) => sha256(u8(0), leaf);
const innerHash = (left, right) => sha256(u8(1), left, right);

function verifyInclusion(index, size, leaf, path, root) {
  ensure(index >= 0n && index < size, 'the index is not below the size');
  let [at, last, computed] = [index, size - 1n, leaf];
  for (const node of path) {
    ensure(last !== 0n, 'hashes of the path are left over');
    if (at & 1n || at === last) {
      computed = innerHash(node, computed);
      while (at !== 0n && !(at & 1n)) [at, last] = [at >> 1n, last >> 1n];
    } else {
      computed = innerHash(computed, node);
    }
    [at, last] = [at >> 1n, last >> 1n];
  }
  ensure(last === 0n, 'hashes of the path are missing');
  ensure(computed.equals(root), 'the path leads to another root');
}

// ---- map ----

function writeVarint(number) {
  const out = [];
  while (number > 0x7f) {
    out.push((number & 0x7f) | 0x80);
    number >>= 7;
  }
  return Buffer.from([...out, number]);
}

const mapEntryHash = (key, value) =>
  sha256(u8(0), writeVarint(key.length), key, writeVarint(value.length), value);
const mapNodeHash = (bit, left, right) => sha256(u8(1), writeVarint(bit), left, right);
const keyBit = (key, number) => (key[number >> 3] >> (7 - (number & 7))) & 1;

class MapProof {
  constructor(proof) {
    this.proof = proof;
    this.at = 0;
  }
  number() {
    let [value, shift] = [0n, 0n];
    for (;;) {
      ensure(this.at < this.proof.length, 'a number without end');
      const byte = this.proof[this.at++];
      value |= BigInt(byte & 0x7f) << shift;
      ensure(value >> 64n === 0n, 'a number above 64 bits');
      if (byte < 0x80) {
        ensure(byte !== 0 || shift === 0n, 'a number that is not in its shortest form');
        return value;
      }
      shift += 7n;
      ensure(shift < 64n, 'a number above 64 bits');
    }
  }
  take(size) {
    ensure(BigInt(size) <= BigInt(this.proof.length - this.at), 'the proof ends within a part');
    const part = this.proof.subarray(this.at, this.at + Number(size));
    this.at += Number(size);
    return part;
  }
  hash() {
    const part = this.take(this.number());
    ensure(part.length === 32, 'a key or value that is not 32 bytes');
    return part;
  }
  /** Fold the steps from the entry of `found` up; the search for `key` has to take the same way. */
  climb(root, key, found, computed) {
    let previous = 256n;
    while (this.at < this.proof.length) {
      const wide = this.number();
      ensure(wide < previous, 'bit numbers must fall from the leaf to the root');
      previous = wide;
      const bit = Number(wide);
      const sibling = this.take(32);
      const side = keyBit(found, bit);
      ensure(keyBit(key, bit) === side, 'the search for the key would have gone the other way');
      computed = side ? mapNodeHash(bit, sibling, computed) : mapNodeHash(bit, computed, sibling);
    }
    ensure(computed.equals(root), 'the proof leads to another root');
  }
}

function verifyPresent(root, key, value, proof) {
  new MapProof(proof).climb(root, key, key, mapEntryHash(key, value));
}

function verifyAbsent(root, key, proof) {
  if (proof.length === 0) {
    ensure(root.equals(EMPTY_ROOT), 'an empty proof, and the map is not empty');
    return;
  }
  ensure(!root.equals(EMPTY_ROOT), 'the empty map has the empty proof');
  const steps = new MapProof(proof);
  const [neighbour, value] = [steps.hash(), steps.hash()];
  ensure(!neighbour.equals(key), 'the entry where the search ends is that of the key itself');
  steps.climb(root, key, neighbour, mapEntryHash(neighbour, value));
}

// ---- notes, checkpoints ----

const [LOG, WITNESS, ML_DSA] = [0x01, 0x04, 0x06];
const PUBLIC_BYTES = { [LOG]: 32, [WITNESS]: 32, [ML_DSA]: 1312 };
const validName = (name) => name !== '' && !/[+\p{White_Space}]/u.test(name);

function readVkey(vkey, types) {
  const [name, id] = vkey.split('+', 2);
  ensure(id !== undefined && vkey.length > name.length + id.length + 1, 'a key is name+id+base64');
  ensure(validName(name), 'the name of a key is empty or holds white space');
  ensure(/^[0-9a-f]{8}$/.test(id), 'the id of a key is not 8 lower-case hexadecimal digits');
  const data = readBase64(vkey.slice(name.length + id.length + 2));
  ensure(data.length > 0, 'the key is empty');
  const keyId = sha256(bytes(name), bytes('\n'), data).subarray(0, 4);
  ensure(keyId.toString('hex') === id, 'the id of a key does not follow from its name and bytes');
  const [type, point] = [data[0], data.subarray(1)];
  ensure(types.includes(type), 'a key of this type is not one for this place');
  ensure(point.length === PUBLIC_BYTES[type], 'the key has not the length of its type');
  return { name, type, point, keyId, slot: `${name}+${id}`, identity: vkey };
}

function ed25519Holds(point, message, signature) {
  try {
    const key = createPublicKey({ key: { kty: 'OKP', crv: 'Ed25519', x: point.toString('base64url') }, format: 'jwk' });
    return signature.length === 64 && verifySignature(null, message, key, signature);
  } catch {
    return false;
  }
}

function noteSignatureHolds(key, text, signature) {
  if (key.type === LOG) return ed25519Holds(key.point, text, signature);
  if (signature.length !== 72) return false;
  const seconds = signature.readBigUInt64BE(0);
  if (seconds > SIZE_MAX) return false;
  return ed25519Holds(key.point, concat(bytes(`cosignature/v1\ntime ${seconds}\n`), text), signature.subarray(8));
}

function readNote(note) {
  ensure(bytes(note).length <= 512 * 1024, 'longer than 512 KiB');
  ensure(!/[\u0000-\u0009\u000b-\u001f]/.test(note), 'a control character');
  const end = note.lastIndexOf('\n\n');
  ensure(end >= 0, 'no empty line between text and signatures');
  const block = note.slice(end + 2);
  ensure(block.endsWith('\n'), 'no signature line, or one without its end');
  const lines = block.slice(0, -1).split('\n');
  ensure(lines.length <= 100, 'more than 100 signature lines');
  return { text: note.slice(0, end + 1), lines: lines.map(readSignatureLine) };
}

function readSignatureLine(line) {
  const blank = line.indexOf(' ', 2);
  ensure(line.startsWith('\u2014 ') && blank > 0, 'a line of the signature block is no signature');
  const name = line.slice(2, blank);
  ensure(validName(name), 'a line of the signature block is no signature');
  const data = readBase64(line.slice(blank + 1));
  ensure(data.length > 4, 'a signature holds no more than a key id');
  const keyId = data.subarray(0, 4);
  return { name, keyId, slot: `${name}+${keyId.toString('hex')}`, signature: data.subarray(4), line };
}

/** The note's text, its lines, and those of `keys` that have signed, in the order of the lines. */
function openNote(note, keys) {
  const { text, lines } = readNote(note);
  const known = new Map();
  for (const key of keys) known.set(key.slot, [...(known.get(key.slot) ?? []), key]);
  const [signed, seen, signers] = [bytes(text), new Set(), new Map()];
  for (const each of lines) {
    const candidates = known.get(each.slot);
    if (!candidates || seen.has(each.line)) continue;
    seen.add(each.line);
    ensure(candidates.length === 1, `two known keys have the name ${each.name} and one id`);
    ensure(noteSignatureHolds(candidates[0], signed, each.signature), `a signature of ${each.name} fails`);
    const seconds = candidates[0].type === WITNESS ? each.signature.readBigUInt64BE(0) : null;
    if (!signers.has(each.slot)) signers.set(each.slot, { ...candidates[0], seconds });
  }
  ensure(signers.size > 0, 'no known key has signed');
  return { text, lines, signers: [...signers.values()] };
}

function readCheckpoint(text) {
  const lines = text.split('\n');
  ensure(lines.pop() === '' && lines.length >= 3, 'a checkpoint is three lines or more');
  ensure(lines.every((line) => line !== ''), 'a checkpoint has no empty line');
  const [origin, size, root] = [lines[0], readDecimal(lines[1]), readBase64(lines[2])];
  ensure(root.length === 32, 'a hash is not 32 bytes');
  ensure(size > 0n || root.equals(EMPTY_ROOT), 'size 0 goes with the root of the empty tree alone');
  return { origin, size, root };
}

const distinct = (keys) => [...new Map(keys.map((key) => [key.identity, key])).values()];

/** Step 2: what the log has signed, under the keys and the policy that the verifier brings. */
function openCheckpoint(note, trust) {
  const logs = distinct([...trust.logKeys, ...(trust.policy?.logs ?? [])]).filter((key) => key.type === LOG);
  let opened, said;
  try {
    opened = openNote(note, logs);
    said = readCheckpoint(opened.text);
  } catch (error) {
    throw asRefused(error, 'CHECKPOINT', 'the checkpoint does not hold');
  }
  const points = opened.signers.filter((key) => key.name === said.origin).map((key) => key.point);
  if (!points.length) throw new Refused('CHECKPOINT', 'no trusted key of this origin has signed the checkpoint');
  const [first, ...others] = opened.lines;
  const ascending = others.every((line, at) => at === 0 || compareLines(others[at - 1], line) < 0);
  if (first.slot !== opened.signers[0].slot || !ascending || others.some((line) => line.slot === first.slot))
    throw new Refused('FORMAT', 'the lines of the checkpoint are not in their one order');
  const cosigned = trust.policy ? checkPolicy(note, trust) : [];
  return { ...said, points, cosigned, cosignatures: others.length };
}

const compareLines = (a, b) => Buffer.compare(bytes(a.name), bytes(b.name)) || Buffer.compare(a.keyId, b.keyId);

function asRefused(error, reason, words, place = undefined) {
  return error instanceof Invalid ? new Refused(reason, `${words}: ${error.message}`, place) : error;
}

// ---- policy ----

function checkPolicy(note, trust) {
  const { logs, witnesses, groups, quorum } = trust.policy;
  const keys = distinct([...logs, ...trust.logKeys, ...[...witnesses.values()]]);
  let signed;
  try {
    const usable = keys.filter((key) => key.type !== ML_DSA);
    signed = new Map(openNote(note, usable).signers.map((key) => [key.identity, key.seconds]));
  } catch (error) {
    throw asRefused(error, 'WITNESS', 'the policy is not met');
  }
  const cosigned = [...witnesses].filter(([, key]) => signed.has(key.identity));
  const held = new Set(cosigned.map(([name]) => name));
  // In the order of the file, in which members stand before their group.
  for (const group of groups.values())
    if (group.members.filter((member) => held.has(member)).length >= group.threshold) held.add(group.name);
  if (quorum !== null && !held.has(quorum))
    throw new Refused('QUORUM', 'the policy is not met: too few of the witnesses have cosigned');
  // The times are the witnesses' word for how new this is; what is new enough, the reader judges.
  return cosigned.map(([name, key]) => `${Buffer.from(name, 'latin1')} at ${timeText(signed.get(key.identity))}`);
}

const timeText = (seconds) =>
  seconds * 1000n <= LAST_INSTANT ? new Date(Number(seconds) * 1000).toISOString() : `${seconds} s`;

/** Read a policy file. Names are octets, which latin1 keeps apart. Throws Invalid. */
function readPolicy(file) {
  ensure(file.length <= 1024 * 1024, 'a policy file is at most 1 MiB');
  const text = file.toString('latin1');
  ensure(/^[\t\n\x20-\x7e\x80-\xff]*$/.test(text), 'a character that a policy file may not hold');
  ensure(text === '' || text.endsWith('\n'), 'the last line has no end');
  const [logs, witnesses, groups, members] = [[], new Map(), new Map(), new Set()];
  let quorum;
  const known = (name) => witnesses.has(name) || groups.has(name);
  const fresh = (name) => ensure(name !== 'none' && !known(name), `the name ${name} is taken`);
  const room = (size) => ensure(size < 256, 'more than 256 logs, witnesses or groups');
  const vkey = (field, types) => readVkey(policyText(field), types);
  for (const line of text.split('\n')) {
    const [keyword, ...fields] = line.replace(/^[ \t]+|[ \t]+$/g, '').split(/[ \t]+/);
    if (keyword === '' || keyword.startsWith('#')) continue;
    const count = (least, most) =>
      ensure(fields.length >= least && fields.length <= most, 'a line has too few or too many fields');
    if (keyword === 'log') {
      count(1, 2);
      const key = vkey(fields[0], [LOG, ML_DSA]);
      ensure(!logs.some((log) => log.point.equals(key.point)), 'two logs have one public key');
      room(logs.length);
      logs.push(key);
    } else if (keyword === 'witness') {
      count(2, 3);
      fresh(fields[0]);
      const key = vkey(fields[1], [WITNESS, ML_DSA]);
      ensure(![...witnesses.values()].some((each) => each.point.equals(key.point)), 'two witnesses have one public key');
      room(witnesses.size);
      witnesses.set(fields[0], key);
    } else if (keyword === 'group') {
      count(3, Infinity);
      const [name, wanted, ...named] = fields;
      fresh(name);
      ensure(named.every(known), 'a member is not defined on an earlier line');
      ensure(new Set(named).size === named.length, 'a member is named twice in a group');
      ensure(!named.some((member) => members.has(member)), 'a name is a member of two groups');
      named.forEach((member) => members.add(member));
      room(groups.size);
      ensure(/^(any|all|[1-9][0-9]{0,9})$/.test(wanted), 'the number of a group');
      const threshold = wanted === 'any' ? 1 : wanted === 'all' ? named.length : Number(wanted);
      ensure(threshold <= named.length, 'the number of a group is above that of its members');
      groups.set(name, { name, threshold, members: named });
    } else if (keyword === 'quorum') {
      count(1, 1);
      ensure(quorum === undefined, 'two quorum lines');
      ensure(fields[0] === 'none' || known(fields[0]), 'the quorum is not defined on an earlier line');
      quorum = fields[0] === 'none' ? null : fields[0];
    } else {
      throw new Invalid('a line is log, witness, group or quorum');
    }
  }
  ensure(quorum !== undefined, 'no quorum line');
  return { logs, witnesses, groups, quorum };
}

function policyText(field) {
  try {
    return decodeUtf8(Buffer.from(field, 'latin1'));
  } catch {
    throw new Invalid('a key whose name is no text');
  }
}

// ---- the form of a bundle ----

const TOKEN = /^[!-~]{1,128}$/;
const BUNDLE_BYTES_MAX = 64 * 1024 * 1024;

function subjectKey(kind, name) {
  if (kind === 'prescription' && TOKEN.test(name)) return streamKey('prescription', bytes(name));
  if (kind === 'trace_code' && TOKEN.test(name)) return streamKey('trace_code', bytes(name));
  if (kind === 'stream' && /^[0-9a-f]{64}$/.test(name)) return Buffer.from(name, 'hex');
  throw new Invalid(`${kind} ${name} is nothing that can be looked up`);
}

const streamKey = (kind, id) =>
  sha256(bytes('erxhub/v1/stream'), u8(0), u32(bytes(kind).length), bytes(kind), id);

class BundleReader {
  constructor(data) {
    ensure(data.length <= BUNDLE_BYTES_MAX, 'more than 64 MiB');
    let text;
    try {
      text = decodeUtf8(data);
    } catch {
      throw new Invalid('not UTF-8');
    }
    const mark = text.indexOf('\ncheckpoint\n');
    ensure(mark >= 0, "no line 'checkpoint'");
    this.lines = text.slice(0, mark).split('\n');
    this.checkpoint = text.slice(mark + '\ncheckpoint\n'.length);
    this.at = 0;
  }
  bundle() {
    ensure(this.lines[0] === 'erxhub/bundle@v1', 'line 1: not erxhub/bundle@v1');
    this.at = 1;
    const form = this.word();
    this.ensure(form === 'chain' || form === 'absence', 'neither a chain nor an absence');
    const [kind, name] = this.fields(form, 2);
    const subject = { kind, name, key: subjectKey(kind, name) };
    this.ensure(form === 'absence' || kind === 'prescription', "the chain is a prescription's");
    const [policy] = this.fields('policy', 1);
    this.ensure(['witnessed', 'unwitnessed'].includes(policy), 'neither witnessed nor unwitnessed');
    const mapRoot = this.sized(this.fields('maproot', 1)[0], 32);
    const mapRootPath = this.path();
    const streams = this.streams();
    let genesis = [];
    if (form === 'chain') {
      this.fields('genesis', 0);
      genesis = this.path();
    }
    const singles = this.singles();
    const absent = this.word() === 'absent' ? this.bytes(this.fields('absent', 1)[0]) : null;
    this.ensure(this.at === this.lines.length, 'not a line that can stand here');
    return { form, subject, policy, mapRoot, mapRootPath, streams, genesis, singles, absent, checkpoint: this.checkpoint };
  }
  streams() {
    const found = [];
    while (this.word() === 'stream') {
      const [kind, key, proof] = this.fields('stream', 3);
      this.ensure(/^[a-z_]{1,32}$/.test(kind), 'not a kind of stream');
      const stream = { kind, key: this.sized(key, 32), proof: this.bytes(proof), entries: [] };
      while (['entry', 'leaf'].includes(this.word())) stream.entries.push(this.entry());
      this.ensure(stream.entries.length > 0, 'a stream without an entry');
      found.push(stream);
    }
    return found;
  }
  singles() {
    const found = [];
    let last = -1n;
    while (this.word() === 'single') {
      const [number, prev] = this.fields('single', 2);
      const index = readDecimal(number);
      this.ensure(index > last, 'not an index above the one before');
      last = index;
      const single = { index, prev: this.sized(prev, 32), shown: this.entry() };
      found.push({ ...single, path: this.path() });
    }
    return found;
  }
  entry() {
    if (this.word() === 'leaf') return { leaf: this.sized(this.fields('leaf', 1)[0], 115) };
    const [hash, header, salt, payload] = this.fields('entry', 4);
    return {
      leafHash: this.sized(hash, 32),
      header: this.bytes(header),
      salt: this.sized(salt, 16),
      payload: this.bytes(payload),
    };
  }
  path() {
    const nodes = [];
    while (this.word() === 'node') {
      nodes.push(this.sized(this.fields('node', 1)[0], 32));
      this.ensure(nodes.length <= 63, 'a path that is longer than any tree is high');
    }
    return nodes;
  }
  word() {
    return this.at < this.lines.length ? this.lines[this.at].split(' ', 1)[0] : '';
  }
  fields(word, count) {
    this.ensure(this.at < this.lines.length && this.word() === word, `no line '${word}'`);
    const fields = this.lines[this.at++].split(' ').slice(1);
    this.ensure(fields.length === count, `${fields.length} fields and not ${count}`);
    return fields;
  }
  bytes(field) {
    if (field === '-') return Buffer.alloc(0);
    this.ensure(field !== '', 'an empty field');
    return readBase64(field);
  }
  sized(field, size) {
    const data = this.bytes(field);
    this.ensure(data.length === size, `${data.length} bytes and not ${size}`);
    return data;
  }
  ensure(held, words) {
    ensure(held, `line ${this.at + 1}: ${words}`);
  }
}

// ---- entries ----

/** The header that is written as exactly these bytes. Throws Invalid. */
function readHeader(data) {
  ensure(data[0] === 1, 'unknown header format');
  const fields = [];
  let at = 1;
  for (let count = 0; count < 10; count++) {
    ensure(at + 4 <= data.length, 'the header ends early');
    const size = data.readUInt32BE(at);
    ensure(at + 4 + size <= data.length, 'the header ends early');
    fields.push(data.subarray(at + 4, at + 4 + size));
    at += 4 + size;
  }
  ensure(at === data.length, 'bytes after the last field');
  const [kind, key, version, entryKind, type, recordedAt, actor, requestId, policyDigest, causes] = fields;
  ensure(
    version.length === 8 && entryKind.length === 1 && type.length === 2 && recordedAt.length === 8,
    'an integer has the wrong size',
  );
  ensure(kind.length > 0 && kind.every((byte) => byte < 0x80), 'stream_kind is not ASCII text');
  ensure(key.length === 32, 'stream_key is not 32 bytes');
  ensure([1, 2, 3].includes(entryKind[0]), 'kind is none of event, refusal, access');
  ensure(causes.length % 32 === 0, 'causes are not whole hashes');
  ensure(actor.length <= 128, 'actor is longer than 128 bytes');
  ensure([0, 32].includes(policyDigest.length), 'policy_digest is neither 32 bytes nor none');
  const header = {
    kind: kind.toString('latin1'),
    key,
    version: version.readBigUInt64BE(),
    entryKind: entryKind[0],
    type: type.readUInt16BE(),
    recordedAt: recordedAt.readBigUInt64BE(),
    causes: Array.from({ length: causes.length / 32 }, (_, n) => causes.subarray(32 * n, 32 * n + 32)),
  };
  ensure(header.version >= 1n, 'version is not from 1');
  ensure(header.type >= 1 && header.type <= 0xfffe, 'type is not in 1..0xFFFE');
  try {
    header.actor = decodeUtf8(actor);
    decodeUtf8(requestId);
  } catch {
    throw new Invalid('text is not valid UTF-8');
  }
  return header;
}

const commitment = ({ salt, header, payload }) =>
  sha256(bytes('erxhub/v1/commit'), u8(0), salt, u32(header.length), header, u64(payload.length), payload);

function leafRecord(header, prev, committed) {
  const type = Buffer.alloc(2);
  type.writeUInt16BE(header.type);
  return concat(u8(1), type, header.key, u64(header.version), prev, committed, u64(header.recordedAt));
}

const readLeaf = (leaf) => ({
  format: leaf[0],
  type: leaf.readUInt16BE(1),
  key: leaf.subarray(3, 35),
  version: leaf.readBigUInt64BE(35),
  prev: leaf.subarray(43, 75),
  recordedAt: leaf.readBigUInt64BE(107),
});

/** The entry at its place (kind, key, version), continuing `prev`: its leaf hash is computed. */
function checkEntry(shown, place, prev) {
  if (shown.leaf) {
    const found = readLeaf(shown.leaf);
    if (found.format !== 1 || !found.key.equals(place.key))
      throw new Refused('HEADER', 'the leaf names another stream', place);
    if (found.version !== place.version)
      throw new Refused('VERSION_GAP', `version ${found.version} stands where ${place.version} belongs`, place);
    if (!found.prev.equals(prev)) throw new Refused('PREV_LEAF', 'it does not continue the entry before', place);
    const { type, recordedAt } = found;
    return { ...place, type, recordedAt, hash: leafHash(shown.leaf), header: null, payload: null };
  }
  let header;
  try {
    header = readHeader(shown.header);
  } catch (error) {
    throw asRefused(error, 'HEADER', 'a header that is none', place);
  }
  if (header.kind !== place.kind || !header.key.equals(place.key))
    throw new Refused('HEADER', 'the header names another stream', place);
  if (header.version !== place.version)
    throw new Refused('VERSION_GAP', `version ${header.version} stands where ${place.version} belongs`, place);
  const hash = leafHash(leafRecord(header, prev, commitment(shown)));
  if (!hash.equals(shown.leafHash))
    throw new Refused('LEAF_HASH', 'the leaf hash does not follow from the entry and the one before it', place);
  return { ...place, type: header.type, recordedAt: header.recordedAt, hash, header, payload: shown.payload };
}

/** An entry of another stream, at the place that it names itself. */
function checkSingle({ index, shown, prev }) {
  let place;
  if (shown.leaf) {
    const { key, version } = readLeaf(shown.leaf);
    place = { kind: '', key, version };
  } else {
    try {
      const { kind, key, version } = readHeader(shown.header);
      place = { kind, key, version };
    } catch (error) {
      throw asRefused(error, 'HEADER', `the entry at index ${index}`);
    }
  }
  if ((place.version === 1n) !== prev.equals(ZEROS))
    throw new Refused('PREV_LEAF', 'exactly a first entry has no predecessor', place);
  return checkEntry(shown, place, prev);
}

// ---- the verification: steps 1 to 10 ----

const HANDED_OUT = new Set(['dispense.outbound', 'dispense.handed_over', 'delivery.signed', 'trace_code.sold']);

/** The verdict on the bytes of a bundle: `{held, checks, reason, place, words}`. It never throws on account of them. */
export function verifyBundle(data, trust, asked = null) {
  const verdict = { held: false, form: null, checks: [], reason: null, place: null, words: '' };
  try {
    new Verification(verdict, trust, asked).run(data);
    verdict.held = true;
  } catch (error) {
    // What a hub made up and cannot be judged proves nothing.
    const refused = error instanceof Refused ? error : new Refused('PAYLOAD', `a content that cannot be judged: ${error}`);
    Object.assign(verdict, { reason: refused.reason, place: refused.place, words: refused.message });
  }
  return verdict;
}

class Verification {
  constructor(verdict, trust, asked) {
    Object.assign(this, { verdict, trust, asked });
  }
  held(words) {
    this.verdict.checks.push(words);
  }
  run(data) {
    let bundle;
    try {
      bundle = new BundleReader(data).bundle();
    } catch (error) {
      throw asRefused(error, 'FORMAT', 'no bundle in its one way of being written');
    }
    this.bundle = bundle;
    this.verdict.form = bundle.form;
    const { kind, name } = bundle.subject;
    this.held(`the file is a bundle of version 1: ${bundle.form} of ${kind} ${name}`);
    if (this.asked && (this.asked.kind !== kind || this.asked.name !== name))
      throw new Refused('SUBJECT', `the bundle is not about ${this.asked.kind} ${this.asked.name}`);
    this.openLog();
    if (bundle.form === 'absence') this.absence();
    else this.chain();
  }
  openLog() {
    const { bundle, trust } = this;
    const log = openCheckpoint(bundle.checkpoint, trust);
    this.log = log;
    if ((bundle.policy === 'unwitnessed') !== (log.cosignatures === 0))
      throw new Refused('UNWITNESSED', 'the policy line and the cosignatures of the checkpoint disagree');
    this.held(`the checkpoint of ${log.origin}, ${log.size} leaves, is signed by the log`);
    if (trust.policy) this.held(`the policy is met; cosigned by ${log.cosigned.join(', ') || 'nobody'}`);
    else this.held(`no policy was given: unwitnessed (${log.cosignatures} cosignatures that nobody here judges)`);
    const covered = log.size - 1n;
    if (covered < 0n) throw new Refused('MAPROOT', 'an empty log has no root of a map');
    const leaf = concat(u8(1), Buffer.from([0xff, 0xff]), u64(covered), bundle.mapRoot);
    try {
      verifyInclusion(covered, log.size, leafHash(leaf), bundle.mapRootPath, log.root);
    } catch (error) {
      throw asRefused(error, 'MAPROOT', "the map's root is not the last leaf");
    }
    this.held(`the map's root is the last leaf of the log and covers the ${covered} leaves before it`);
  }
  /** The entries of a stream that the map proves to be all of it. */
  whole(stream) {
    const { kind, key } = stream;
    const [entries, name] = [[], `${kind}/${key.toString('hex').slice(0, 16)}`];
    let [prev, at] = [ZEROS, 0n];
    for (const shown of stream.entries) {
      const entry = checkEntry(shown, { kind, key, version: BigInt(entries.length + 1) }, prev);
      if (entry.recordedAt < at) throw new Refused('TIME_BACKWARDS', 'recorded before its predecessor', entry);
      [prev, at] = [entry.hash, entry.recordedAt];
      entries.push(entry);
    }
    this.held(`${name}: ${entries.length} entries, each linked to the one before`);
    try {
      verifyPresent(this.bundle.mapRoot, key, sha256(u64(entries.length), prev), stream.proof);
    } catch (error) {
      throw asRefused(error, 'MAP', 'the map does not hold the stream with these entries', entries.at(-1));
    }
    this.held(`${name}: the map proves that these ${entries.length} entries are all there are`);
    return entries;
  }
  included(index, hash, path) {
    ensure(index < this.log.size - 1n, 'the index is not that of an entry');
    verifyInclusion(index, this.log.size, hash, path, this.log.root);
  }
  absence() {
    const { streams, singles, absent, mapRoot, subject } = this.bundle;
    if (absent !== null) {
      if (streams.length || singles.length) throw new Refused('STREAM_MISSING', 'an absence with entries');
      try {
        verifyAbsent(mapRoot, subject.key, absent);
      } catch (error) {
        throw asRefused(error, 'ABSENCE', 'the map does not prove that there is no such stream');
      }
      this.held('the map proves that there is no such stream: by this checkpoint nothing had happened under it');
      return;
    }
    if (streams.length !== 1 || singles.length)
      throw new Refused('STREAM_MISSING', 'neither an absence nor the one stream that was asked about');
    if (streams[0].kind !== subject.kind || !streams[0].key.equals(subject.key))
      throw new Refused('STREAM_KEY', 'the stream is not the one that was asked about');
    const entries = this.whole(streams[0]);
    for (const entry of entries) {
      const event = eventOf(entry);
      // Of a stream that was asked about by its key alone, the kind is unknown.
      if (!event || ![...event.kinds, 'stream'].includes(entry.kind))
        throw new Refused('PAYLOAD', `what type 0x${entry.type.toString(16)} is here, nobody can say`, entry);
      if (HANDED_OUT.has(event.name)) throw new Refused('DISPENSED', `there is a dispensing: ${event.name}`, entry);
    }
    this.held(`none of the ${entries.length} entries is a dispensing`);
  }
  chain() {
    const { streams, absent, subject, genesis } = this.bundle;
    if (absent !== null) throw new Refused('STREAM_MISSING', 'a chain and an absence in one');
    const kinds = streams.map((stream) => stream.kind).join(' ');
    if (!['prescription encounter ledger', 'prescription ledger'].includes(kinds))
      throw new Refused('STREAM_MISSING', "a chain is the prescription's, the encounter's and the ledger's streams");
    if (!streams[0].key.equals(subject.key))
      throw new Refused('STREAM_KEY', "the prescription's stream is not that of the number");
    this.held("the prescription's stream key was computed from the number");
    const prescription = this.whole(streams[0]);
    const encounter = streams.length === 3 ? this.whole(streams[1]) : [];
    const ledger = this.whole(streams.at(-1));
    try {
      this.included(0n, ledger[0].hash, genesis);
    } catch (error) {
      throw asRefused(error, 'GENESIS', 'it is not the first leaf of the log', ledger[0]);
    }
    this.held("the ledger's stream begins with the first leaf of the log");
    const singles = this.singles();
    const isWhole = this.contents(prescription, encounter, ledger);
    this.causes([...prescription, ...encounter], singles);
    if (isWhole) new Contents(this, { prescription, encounter, ledger, singles }).check();
  }
  singles() {
    const whole = new Set(this.bundle.streams.map((stream) => stream.key.toString('hex')));
    const found = this.bundle.singles.map((single) => {
      const entry = checkSingle(single);
      if (whole.has(entry.key.toString('hex')))
        throw new Refused('UNRELATED', 'an entry of a stream that is here as a whole', entry);
      try {
        this.included(single.index, entry.hash, single.path);
      } catch (error) {
        throw asRefused(error, 'INCLUSION', `it is not in the log at index ${single.index}`, entry);
      }
      return entry;
    });
    this.held(`${found.length} entries of other streams are in the log, each at its index`);
    return found;
  }
  contents(prescription, encounter, ledger) {
    const hidden = ledger.find((entry) => !entry.header);
    if (hidden) throw new Refused('CONTENT_MISSING', "the ledger's own entries are never erased", hidden);
    const bare = [...prescription, ...encounter].filter((entry) => !entry.header);
    if (!bare.length) {
      if (!encounter.length) throw new Refused('STREAM_MISSING', "the encounter's stream is not here", prescription[0]);
      return true;
    }
    const erasure = prescription.find((entry) => eventOf(entry)?.name === 'content.erased');
    // A visit goes with its last prescription, and of an erased prescription nobody can say which visit it had.
    const never = bare.find((entry) => entry.kind !== 'prescription' || !erasure || entry.version >= erasure.version);
    if (never) throw new Refused('CONTENT_MISSING', 'content is left out that was never erased', never);
    if (encounter.length) throw new Refused('STREAM_MISSING', 'an erased prescription names no visit', encounter[0]);
    if (BigInt(bare.length) !== erasure.version - 1n)
      throw new Refused('CONTENT_MISSING', 'some content from before the erasure is here, and some is not', bare[0]);
    const said = decodeMessage('ContentErased', erasure.payload);
    if (erasure.header.entryKind !== 1 || !RETENTION_CLASSES.includes(said.retention_class))
      throw new Refused('PAYLOAD', 'its content is none of an event of this stream', erasure);
    if (said.kept_until_ms >= erasure.recordedAt)
      throw new Refused('CONTENT_MISSING', 'content was erased before the end of its retention', erasure);
    const basis = `under ${JSON.stringify(said.legal_basis)}, class ${said.retention_class}`;
    this.held(`content erased in ${bare.length} entries, ${basis}: existence and order are proven, their rules are not`);
    return false;
  }
  causes(own, singles) {
    const known = new Map([...own, ...singles].map((entry) => [entry.hash.toString('hex'), entry]));
    const [needed, mayBeBare] = [new Set(), new Set()];
    for (const entry of own)
      for (const cause of entry.header?.causes ?? []) {
        const name = cause.toString('hex');
        const there = known.get(name);
        if (!there)
          throw new Refused('CAUSE_MISSING', `it rests on ${name.slice(0, 16)}, which is not in the bundle`, entry);
        if (there.recordedAt > entry.recordedAt)
          throw new Refused('TIME_BACKWARDS', 'recorded before what it rests on', entry);
        needed.add(name);
        if (eventOf(entry)?.name === 'prescription.renewed') mayBeBare.add(name);
      }
    for (const single of singles) {
      const name = single.hash.toString('hex');
      if (!needed.has(name) && eventOf(single)?.name !== 'signing_key.registered')
        throw new Refused('UNRELATED', 'nothing in the bundle rests on it', single);
      if (!single.header && !mayBeBare.has(name))
        throw new Refused('CONTENT_MISSING', 'its content belongs to this chain', single);
    }
    this.held(`all ${needed.size} entries that the chain rests on are in the bundle, and nothing else is`);
  }
}

// ---- payloads: a reader of protobuf by the tables at the end ----

/** One message. Absent fields have their defaults; a message that is not there says so in `$absent`. Throws Invalid. */
function decodeMessage(name, data, into = emptyMessage(name), depth = 0) {
  ensure(depth < 100, 'messages in one another without end');
  const reader = new WireReader(data);
  while (!reader.done) {
    const start = reader.at;
    const [number, wire] = reader.tag();
    const field = MESSAGE_FIELDS.get(name).get(number);
    if (!field || !takeField(reader, wire, field, into, depth)) {
      reader.skip(number, wire, 0);
      into.$unknown.push(data.subarray(start, reader.at));
    }
  }
  return into;
}

function emptyMessage(name) {
  const made = { $type: name, $absent: false, $unknown: [] };
  for (const field of MESSAGE_FIELDS.get(name).values()) made[field.name] = field.many ? [] : emptyValue(field);
  return made;
}

function emptyValue({ kind, message }) {
  if (message) return Object.assign(emptyMessage(message), { $absent: true });
  return { s: '', y: Buffer.alloc(0), b: false }[kind] ?? 0n;
}

/** Whether the field's value was taken; false when it came in another wire type, and counts as unknown. */
function takeField(reader, wire, field, into, depth) {
  const { kind, message, many, name } = field;
  const put = (value) => (many ? into[name].push(value) : (into[name] = value));
  if (wire === 2 && (message || kind === 's' || kind === 'y')) {
    const part = reader.sized();
    if (message) {
      const held = many ? emptyMessage(message) : into[name];
      held.$absent = false;
      const read = decodeMessage(message, part, held, depth + 1);
      if (many) put(read);
    } else {
      put(kind === 'y' ? part : readString(part));
    }
    return true;
  }
  const isNumber = !message && kind !== 's' && kind !== 'y';
  if (isNumber && wire === 0) {
    put(toNumber(kind, reader.varint()));
    return true;
  }
  if (isNumber && many && wire === 2) {
    const packed = new WireReader(reader.sized());
    while (!packed.done) put(toNumber(kind, packed.varint()));
    return true;
  }
  return false;
}

function readString(part) {
  try {
    return decodeUtf8(part);
  } catch {
    throw new Invalid('a string that is not UTF-8');
  }
}

function toNumber(kind, value) {
  if (kind === 'b') return value !== 0n;
  if (kind === 'l') return BigInt.asIntN(64, value);
  if (kind === 'i' || kind === 'e') return BigInt.asIntN(32, value);
  return kind === 'u' ? BigInt.asUintN(32, value) : value;
}

class WireReader {
  constructor(data) {
    this.data = data;
    this.at = 0;
  }
  get done() {
    return this.at >= this.data.length;
  }
  varint() {
    let value = 0n;
    for (let shift = 0n; shift < 70n; shift += 7n) {
      ensure(!this.done, 'a number without end');
      const byte = this.data[this.at++];
      value |= BigInt(byte & 0x7f) << shift;
      // What is above 64 bits of ten bytes is dropped, as protobuf has it.
      if (byte < 0x80) return BigInt.asUintN(64, value);
    }
    throw new Invalid('a number of more than ten bytes');
  }
  tag() {
    const value = this.varint();
    ensure(value >> 32n === 0n && value >> 3n > 0n, 'not the number of a field');
    return [Number(value >> 3n), Number(value & 7n)];
  }
  sized() {
    const size = this.varint();
    ensure(size <= BigInt(this.data.length - this.at), 'a field that is longer than its message');
    return this.take(Number(size));
  }
  take(size) {
    ensure(size <= this.data.length - this.at, 'a field that is longer than its message');
    this.at += size;
    return this.data.subarray(this.at - size, this.at);
  }
  skip(number, wire, depth) {
    ensure(depth < 100, 'groups in one another without end');
    if (wire === 0) this.varint();
    else if (wire === 1) this.take(8);
    else if (wire === 2) this.sized();
    else if (wire === 5) this.take(4);
    else if (wire === 3) {
      for (;;) {
        const [inner, its] = this.tag();
        if (its === 4) {
          ensure(inner === number, 'a group that ends as another');
          return;
        }
        this.skip(inner, its, depth + 1);
      }
    } else throw new Invalid('a field of no known kind');
  }
}

/** Whether two messages of one type say the same. Fields that are not in the tables count unless `knownOnly`. */
function same(a, b, knownOnly = false) {
  if (!knownOnly && !concat(...a.$unknown).equals(concat(...b.$unknown))) return false;
  return [...MESSAGE_FIELDS.get(a.$type).values()].every(({ name, message, many }) => {
    const [one, two] = [a[name], b[name]];
    if (many) return sameList(one, two, knownOnly);
    if (message) return one.$absent === two.$absent && same(one, two, knownOnly);
    return sameValue(one, two);
  });
}

const sameValue = (a, b) => (Buffer.isBuffer(a) ? a.equals(b) : a === b);
const sameList = (a, b, knownOnly = false) =>
  a.length === b.length &&
  a.every((one, at) => (one.$type ? same(one, b[at], knownOnly) : sameValue(one, b[at])));

// ---- signatures of participants ----

/** The bytes that a signature is over (DSSE pre-authentication encoding). */
const signedBytes = (type, payload) =>
  concat(bytes(`DSSEv1 ${bytes(type).length} ${type} ${payload.length} `), payload);

const SUITES = {
  ES256(point, message, signature) {
    if (point.length !== 65 || point[0] !== 4) return false;
    const [x, y] = [point.subarray(1, 33).toString('base64url'), point.subarray(33).toString('base64url')];
    const key = createPublicKey({ key: { kty: 'EC', crv: 'P-256', x, y }, format: 'jwk' });
    return verifySignature('sha256', message, { key, dsaEncoding: 'ieee-p1363' }, signature);
  },
  EdDSA(point, message, signature) {
    const y = toInteger(Buffer.from(point).reverse()) & (2n ** 255n - 1n);
    // A key of small order has signatures that fit many messages.
    return point.length === 32 && y < P25519 && !SMALL_ORDER_Y.has(y) && ed25519Holds(point, message, signature);
  },
  'SM2-SM3': (point, message, signature) => sm2Holds(point, message, signature),
};

function signatureHolds(suite, point, message, signature) {
  try {
    return signature.length === 64 && SUITES[suite](point, message, signature);
  } catch {
    return false;
  }
}

const toInteger = (data) => BigInt(`0x${data.toString('hex') || '0'}`);
const fromInteger = (number) => Buffer.from(number.toString(16).padStart(64, '0'), 'hex');
const P25519 = 2n ** 255n - 19n;
const ORDER_EIGHT_Y = 0x7a03ac9277fdc74ec6cc392cfa53202a0f67100d760b3cba4fd83d3d706a17c7n;
const SMALL_ORDER_Y = new Set([0n, 1n, P25519 - 1n, ORDER_EIGHT_Y, P25519 - ORDER_EIGHT_Y]);

/** SM3 (GB/T 32905), 32 bytes. */
function sm3(message) {
  const rotate = (x, n) => ((x << n % 32) | (x >>> (32 - (n % 32)) % 32)) >>> 0;
  const rotated = (x, n) => (n % 32 === 0 ? x : rotate(x, n));
  const p0 = (x) => (x ^ rotate(x, 9) ^ rotate(x, 17)) >>> 0;
  const p1 = (x) => (x ^ rotate(x, 15) ^ rotate(x, 23)) >>> 0;
  const padding = Buffer.alloc(((119 - (message.length % 64)) % 64) + 1);
  padding[0] = 0x80;
  const data = concat(message, padding, u64(message.length * 8));
  let v = [0x7380166f, 0x4914b2b9, 0x172442d7, 0xda8a0600, 0xa96f30bc, 0x163138aa, 0xe38dee4d, 0xb0fb0e4e];
  for (let at = 0; at < data.length; at += 64) {
    const w = [];
    for (let j = 0; j < 16; j++) w.push(data.readUInt32BE(at + 4 * j));
    for (let j = 16; j < 68; j++)
      w.push((p1(w[j - 16] ^ w[j - 9] ^ rotate(w[j - 3], 15)) ^ rotate(w[j - 13], 7) ^ w[j - 6]) >>> 0);
    let [a, b, c, d, e, f, g, h] = v;
    for (let j = 0; j < 64; j++) {
      const ss1 = rotate((rotate(a, 12) + e + rotated(j < 16 ? 0x79cc4519 : 0x7a879d8a, j)) >>> 0, 7);
      const ss2 = ss1 ^ rotate(a, 12);
      const ff = j < 16 ? a ^ b ^ c : (a & b) | (a & c) | (b & c);
      const gg = j < 16 ? e ^ f ^ g : (e & f) | (~e & g);
      const tt1 = (ff + d + ss2 + (w[j] ^ w[j + 4])) >>> 0;
      const tt2 = (gg + h + ss1 + w[j]) >>> 0;
      [a, b, c, d, e, f, g, h] = [tt1, a, rotate(b, 9), c, p0(tt2), e, rotate(f, 19), g];
    }
    v = [a, b, c, d, e, f, g, h].map((word, j) => (word ^ v[j]) >>> 0);
  }
  return concat(...v.map(u32));
}

const SM2 = {
  p: 0xfffffffeffffffffffffffffffffffffffffffff00000000ffffffffffffffffn,
  a: 0xfffffffeffffffffffffffffffffffffffffffff00000000fffffffffffffffcn,
  b: 0x28e9fa9e9d9f5e344d5a9e4bcf6509a7f39789f515ab8f92ddbcbd414d940e93n,
  n: 0xfffffffeffffffffffffffffffffffff7203df6b21c6052b53bbf40939d54123n,
  x: 0x32c4ae2c1f1981195f9904466a39c9948fe30bbff2660be1715a4589334c74c7n,
  y: 0xbc3736a2f4f6779c59bdcee36b692153d0a9877cc62a474002df32e52139f0a0n,
};
const modulo = (value, by) => ((value % by) + by) % by;

/** An SM2 signature (GB/T 32918.2) with the default user id. */
function sm2Holds(point, message, signature) {
  const { p, a, b, n } = SM2;
  const [x, y] = [toInteger(point.subarray(1, 33)), toInteger(point.subarray(33))];
  if (point.length !== 65 || point[0] !== 4 || x >= p || y >= p) return false;
  if (modulo(y * y - (x * x * x + a * x + b), p) !== 0n) return false;
  const [r, s] = [toInteger(signature.subarray(0, 32)), toInteger(signature.subarray(32))];
  if (r === 0n || r >= n || s === 0n || s >= n) return false;
  const t = (r + s) % n;
  if (t === 0n) return false;
  const id = bytes('1234567812345678');
  const constants = [a, b, SM2.x, SM2.y, x, y].map(fromInteger);
  const za = sm3(concat(Buffer.from([0, id.length * 8]), id, ...constants));
  const e = toInteger(sm3(concat(za, message)));
  const sum = sm2Add(sm2Times(s, [SM2.x, SM2.y, 1n]), sm2Times(t, [x, y, 1n]));
  if (sum[2] === 0n) return false;
  const z = inverse(sum[2], p);
  return (e + modulo(sum[0] * z * z, p)) % n === r;
}

/** Points are [X, Y, Z] with x = X ÷ Z², y = Y ÷ Z³; Z = 0 is the point at infinity. */
function sm2Double([x, y, z]) {
  const { p, a } = SM2;
  if (z === 0n || y === 0n) return [1n, 1n, 0n];
  const yy = (y * y) % p;
  const s = (4n * x * yy) % p;
  const m = (3n * x * x + a * z ** 4n) % p;
  const x3 = modulo(m * m - 2n * s, p);
  return [x3, modulo(m * (s - x3) - 8n * yy * yy, p), (2n * y * z) % p];
}

function sm2Add([x1, y1, z1], [x2, y2, z2]) {
  const { p } = SM2;
  if (z1 === 0n) return [x2, y2, z2];
  if (z2 === 0n) return [x1, y1, z1];
  const [z1z1, z2z2] = [(z1 * z1) % p, (z2 * z2) % p];
  const [u1, u2] = [(x1 * z2z2) % p, (x2 * z1z1) % p];
  const [s1, s2] = [(y1 * z2 * z2z2) % p, (y2 * z1 * z1z1) % p];
  if (u1 === u2) return s1 === s2 ? sm2Double([x1, y1, z1]) : [1n, 1n, 0n];
  const [h, r] = [modulo(u2 - u1, p), modulo(s2 - s1, p)];
  const hh = (h * h) % p;
  const [hhh, v] = [(h * hh) % p, (u1 * hh) % p];
  const x3 = modulo(r * r - hhh - 2n * v, p);
  return [x3, modulo(r * (v - x3) - s1 * hhh, p), (h * z1 * z2) % p];
}

function sm2Times(scalar, point) {
  let sum = [1n, 1n, 0n];
  for (const bit of scalar.toString(2)) {
    sum = sm2Double(sum);
    if (bit === '1') sum = sm2Add(sum, point);
  }
  return sum;
}

function inverse(value, by) {
  let [a, b, x, y] = [modulo(value, by), by, 1n, 0n];
  while (a > 1n) [a, b, x, y] = [b % a, a, y - (b / a) * x, x];
  return modulo(x, by);
}

// ---- the verification: steps 11 to 16, inside the payloads ----

const SETTLED = ['settlement.committed', 'settlement.self_paid'];
const LAST_INSTANT = 253402214400000n;
const ORDER_OF_KINDS = { encounter: 1, prescription: 2, ledger: 3 };

const eventOf = (entry) => EVENT_TYPES.get(entry.type);

class Contents {
  constructor(verification, { prescription, encounter, ledger, singles }) {
    Object.assign(this, { verification, singles });
    // Within one instant what others rest on comes first; a revocation binds what is recorded after its instant.
    const order = (entry) => ORDER_OF_KINDS[entry.kind] ?? 0;
    const shown = singles.filter((single) => single.header);
    this.placed = [...prescription, ...encounter, ...ledger, ...shown].sort(
      (a, b) =>
        compare(a.recordedAt, b.recordedAt) ||
        order(a) - order(b) ||
        Buffer.compare(a.key, b.key) ||
        compare(a.version, b.version),
    );
    this.streams = new Map();
    this.placed.forEach((entry, position) => {
      const key = entry.key.toString('hex');
      entry.position = position;
      if (!this.streams.has(key)) this.streams.set(key, []);
      this.streams.get(key).push(entry);
    });
    this.rx = this.stream(prescription[0].key);
    this.encounter = this.stream(encounter[0].key);
    this.ledger = this.stream(ledger[0].key);
  }
  held(words) {
    this.verification.held(words);
  }
  stream(key) {
    return this.streams.get(key.toString('hex')) ?? [];
  }
  check() {
    this.readable();
    this.names();
    this.held('every content can be read; the prescription names its number and its encounter');
    this.origin();
    this.held('the ledger was opened under this origin, and the key that signed is registered in it');
    new Lifecycle().follow(this.rx, this.encounter);
    this.held('the events follow one another as the transition tables allow');
    this.links();
    this.held('diagnosis, prescription, transaction and delivery are joined by their leaf hashes');
    this.renewals();
    const signed = this.signed();
    this.held(`${signed.length} signatures hold over the exact bytes, under keys registered and not revoked then`);
    if (this.verification.trust.ca) {
      const certified = this.certificates(signed);
      const keys = new Set(signed.map(({ subject, institution, key }) => `${subject} ${institution} ${key.key_id}`)).size;
      const rest = keys > certified ? `; the other ${keys - certified} are the signers' by the word of the ledger alone` : '';
      this.held(`${certified} of the ${keys} signers' keys have a certificate of the trust domain${rest}`);
    }
    this.figures();
    this.held('quantities, money and drug trace codes agree');
  }
  readable() {
    for (const entries of this.streams.values())
      for (const entry of entries) {
        const event = eventOf(entry);
        const misfit = new Refused('PAYLOAD', 'its content is none of an event of this stream', entry);
        if (!event || !event.kinds.includes(entry.kind) || entry.recordedAt > LAST_INSTANT) throw misfit;
        if (entry.header.entryKind !== 1) throw misfit;
        entry.name = event.name;
        try {
          entry.says = decodeMessage(event.message, entry.payload);
        } catch (error) {
          throw asRefused(error, 'PAYLOAD', 'its content cannot be read', entry);
        }
      }
  }
  names() {
    const [first] = this.rx;
    if (first.name !== 'prescription.prechecked' || first.says.rx_no !== this.verification.bundle.subject.name)
      throw new Refused('STREAM_KEY', 'its first entry is not the pre-check of this number', first);
    if (!first.says.encounter_key.equals(this.encounter[0].key))
      throw new Refused('STREAM_KEY', "the encounter's stream is not the one that the prescription names", first);
    this.prechecked = first;
    this.rxNo = first.says.rx_no;
    this.sales = salesOf(this.rx);
    this.registered = this.encounter.find((entry) => entry.name === 'encounter.registered');
    this.uploaded = this.rx.find((entry) => entry.name === 'prescription.uploaded');
    this.prescriptionDigest = this.uploaded ? sha256(this.uploaded.says.prescription.payload) : Buffer.alloc(0);
  }
  origin() {
    const { origin, points } = this.verification.log;
    const [opened] = this.ledger;
    if (opened.name !== 'ledger.opened' || opened.says.origin !== origin)
      throw new Refused('GENESIS', `the ledger was not opened as ${origin}`, opened);
    const isRegistered = this.ledger.some(
      ({ name, says }) =>
        name === 'hub_key.registered' &&
        says.key.purpose === 'log' &&
        points.some((point) => point.equals(says.key.public_key)),
    );
    if (!isRegistered)
      throw new Refused('HUB_KEY', "no key that signed the checkpoint is registered as the log's", this.ledger.at(-1));
  }

  // -- links --

  links() {
    const broken = (entry) => {
      throw new Refused('LINK', 'it does not rest on the entry of the other stream that it names', entry);
    };
    const diagnosis = this.encounter.find((entry) => entry.version === this.prechecked.says.diagnosis_version);
    const isDiagnosis = ['diagnosis.recorded', 'diagnosis.amended'].includes(diagnosis?.name);
    if (!isDiagnosis || !restsOn(this.prechecked, diagnosis)) broken(this.prechecked);
    const steps = [...this.encounter, ...this.rx].filter((entry) => voucherKey(entry).length);
    for (const step of steps.sort((a, b) => a.position - b.position)) {
      const verified = this.stream(voucherKey(step)).find((entry) => entry.name === 'voucher.verified');
      if (verified && !restsOn(step, verified)) broken(step);
    }
    for (const move of this.moves()) {
      const step = this.rx.find((entry) => entry.version === move.says.rx_version);
      if (!step || !restsOn(step, move)) broken(move);
    }
    for (const out of this.rx.filter((entry) => entry.name === 'dispense.outbound')) {
      const sold = traceCodes(out).map((code) => this.salesOfCode(code));
      // A code without any sale of this prescription is found with the figures.
      if (!sold.every((sales) => !sales.length || sales.some((sale) => restsOn(out, sale)))) broken(out);
    }
  }
  /** The entries of the account that name this prescription. */
  moves() {
    const paid = this.rx.find(({ name, says }) => name === 'settlement.committed' && says.account_key.length);
    if (!paid) return [];
    return this.stream(paid.says.account_key).filter(
      ({ name, says }) =>
        ['account.debited', 'account.restored'].includes(name) && says.rx_key.equals(this.prechecked.key),
    );
  }
  salesOfCode(code) {
    return this.stream(streamKey('trace_code', bytes(code))).filter(
      ({ name, says }) => name === 'trace_code.sold' && says.rx_key.equals(this.prechecked.key),
    );
  }
  renewals() {
    const streamOf = new Map(this.singles.map((single) => [single.hash.toString('hex'), single.key]));
    for (const entry of this.rx.filter((each) => each.name === 'prescription.renewed')) {
      const renewed = streamKey('prescription', bytes(entry.says.renews_rx_no));
      for (const cause of entry.header.causes)
        if (!(streamOf.get(cause.toString('hex')) ?? renewed).equals(renewed))
          throw new Refused('LINK', 'it does not rest on the prescription that it renews', entry);
    }
  }

  // -- signatures --

  signed() {
    const contents = [...signedContents(this)];
    const used = new Set(contents.flatMap(({ signed }) => signed.signatures.slice(0, 1).map((each) => each.key_id)));
    for (const single of this.singles)
      if (single.name === 'signing_key.registered' && !used.has(single.says.key.key_id))
        throw new Refused('UNRELATED', 'nothing here was signed with this key', single);
    const registrations = this.registrations();
    const firstAt = new Map();
    for (const content of contents) {
      this.checkSigned(content, registrations);
      const { entry, signed } = content;
      const statement = `${signed.payload_type} ${signed.payload.toString('hex')}`;
      if ((firstAt.get(statement) ?? entry.recordedAt) !== entry.recordedAt)
        throw new Refused('REUSED', 'what was signed once stands for a later step as well', entry);
      firstAt.set(statement, entry.recordedAt);
    }
    return contents;
  }
  registrations() {
    return [...this.streams.values()].flat().filter((entry) => entry.name === 'signing_key.registered');
  }
  checkSigned(content, registrations) {
    const { entry, signed, subject, institution } = content;
    const refuse = (reason, words) => {
      throw new Refused(reason, `the signature of ${subject || institution}: ${words}`, entry);
    };
    const [signature] = signed.signatures;
    const statement = readStatement(content);
    if (!signature || !statement) refuse('SIGNATURE', 'there is none, or the content is not of its type');
    const key = this.keyOf(content, signature.key_id, registrations);
    if (!key || !Object.hasOwn(SUITES, key.suite)) refuse('SIGNING_KEY', 'the key was not registered for this signer');
    const message = signedBytes(signed.payload_type, signed.payload);
    if (!signatureHolds(key.suite, key.public_key, message, signature.signature))
      refuse('SIGNATURE', 'it does not verify over the exact bytes');
    if (statement.signed_at_ms < key.valid_from_ms || statement.signed_at_ms > key.valid_until_ms)
      refuse('SIGNING_KEY', 'the key was not valid then');
    const isRevoked = this.ledger.some(
      ({ name, says, position }) =>
        name === 'certificate.revoked' && says.key_id && says.key_id === key.key_id && position < entry.position,
    );
    if (isRevoked) refuse('SIGNING_KEY', 'the key had been revoked');
    if (!content.agrees(statement)) refuse('DIGEST', 'what was signed is not what the entry says');
    content.key = key;
  }
  /** The key's record, if it was registered for this signer at this institution before the entry. */
  keyOf({ entry, isSealed, subject, institution }, keyId, registrations) {
    // For a person no seal can stand.
    const kind = isSealed ? 'institution' : 'practitioner';
    const theirs = registrations.filter((each) => each.kind === kind && each.says.key.subject_code === subject);
    // A signer has one stream; whoever seems to have two has none.
    if (theirs.some((each) => !each.key.equals(theirs[0].key))) return null;
    const stream = theirs.length ? this.stream(theirs[0].key) : [];
    const found = stream.find(
      ({ name, says, position }) =>
        name === 'signing_key.registered' &&
        says.key.key_id === keyId &&
        says.key.subject_code === subject &&
        says.key.institution_code === institution &&
        position < entry.position,
    );
    return found?.says.key ?? null;
  }
  certificates(signed) {
    const used = new Set(signed.map(({ subject, institution, key }) => `${subject} ${institution} ${key.key_id}`));
    let certified = 0;
    for (const entry of this.registrations()) {
      const { key, certificate_pem: pem } = entry.says;
      if (!used.has(`${key.subject_code} ${key.institution_code} ${key.key_id}`)) continue;
      // An SM2 key has none: whose it is, the ledger alone says.
      if (!pem.length && key.suite === 'SM2-SM3') continue;
      if (!certificateBinds(pem.toString('latin1'), key, this.verification.trust.ca))
        throw new Refused('CERTIFICATE', "no certificate of the trust domain for this signer, key and time", entry);
      certified += 1;
    }
    return certified;
  }

  // -- figures --

  figures() {
    const last = this.rx.at(-1);
    if (!quantitiesHold(this.prechecked, this.sales))
      throw new Refused('QUANTITY', 'more was sold or handed out than prescribed, or another drug', last);
    if (!this.moneyHolds())
      throw new Refused('MONEY', 'a claim does not add up, or is not what was quoted or moved in the account', last);
    for (const { out } of this.sales)
      if (out && !traceCodes(out).every((code) => this.salesOfCode(code).length === 1))
        throw new Refused('TRACE_CODE', 'a drug trace code was not sold once for this prescription', out);
  }
  moneyHolds() {
    const steps = this.rx.filter(({ name }) => name === 'settlement.quoted' || SETTLED.includes(name));
    if (!steps.every(({ says }) => claimHolds(says.claim))) return false;
    for (const { settled, quotes } of this.sales) {
      if (!settled) continue;
      const { amounts } = settled.says.claim;
      if (settled.name === 'settlement.committed') {
        if (!quotes.some((quote) => takesUp(settled, quote))) return false;
      } else if (amounts.fund_fen || amounts.account_fen) return false;
    }
    return this.accountAgrees();
  }
  accountAgrees() {
    const [moved, claimed] = [new Map(), new Map()];
    for (const { name, says } of this.moves()) {
      const sign = name === 'account.debited' ? 1n : -1n;
      const sums = moved.get(says.settlement_id) ?? [0n, 0n, 0n];
      const parts = [says.amount_fen, says.in_scope_fen, says.fund_fen];
      moved.set(says.settlement_id, sums.map((sum, at) => sum + sign * parts[at]));
    }
    for (const { settled, givenBack } of this.sales) {
      if (settled?.name !== 'settlement.committed') continue;
      const { amounts, settlement_id: id } = settled.says.claim;
      const parts = [amounts.account_fen, amounts.in_scope_fen, amounts.pooled_fund_fen];
      claimed.set(id, givenBack ? [0n, 0n, 0n] : parts);
    }
    const nothing = [0n, 0n, 0n];
    return [...moved.keys(), ...claimed.keys()].every((id) => {
      const [one, two] = [moved.get(id) ?? nothing, claimed.get(id) ?? nothing];
      return one.every((value, at) => value === two[at]);
    });
  }
}

const restsOn = (entry, cause) =>
  cause.position < entry.position && entry.header.causes.some((each) => each.equals(cause.hash));
const traceCodes = (out) => out.says.lots.flatMap((lot) => lot.trace_codes);

function voucherKey({ name, says }) {
  const key = name === 'authorization.issued' ? says.authorization.voucher_key : says.voucher_key;
  return key ?? Buffer.alloc(0);
}

// ---- sales ----

/** Each order with what it came to, read from the events alone. */
function salesOf(entries) {
  const sales = new Map();
  for (const entry of entries) {
    const orderNo = entry.says.order_no;
    if (!orderNo) continue;
    if (!sales.has(orderNo)) sales.set(orderNo, { orderNo, quotes: [], pharmacy: '' });
    const sale = sales.get(orderNo);
    const { name, says } = entry;
    if (name === 'order.created') sale.pharmacy = says.pharmacy_code;
    else if (name === 'settlement.quoted') sale.quotes.push(entry);
    else if (SETTLED.includes(name)) Object.assign(sale, { settled: entry, givenBack: null });
    else if (name === 'settlement.undone') sale.givenBack = entry;
    else if (name === 'settlement.reversed') sale.givenBack = says.target === REVERSAL_OF_UNDO ? null : entry;
    else if (name === 'dispense.outbound') sale.out = entry;
  }
  return [...sales.values()];
}

const REVERSAL_OF_UNDO = 3n;

/** Decimal text as ten-thousandths; null for what is no plain decimal. */
function quantityE4(text) {
  const found = /^(0|[1-9][0-9]{0,11})(?:\.([0-9]{1,4}))?$/.exec(text);
  return found ? BigInt(found[1]) * 10000n + BigInt((found[2] ?? '').padEnd(4, '0')) : null;
}

/** Prescribed ≥ sold ≥ out for each line, and no other drug. */
function quantitiesHold(prechecked, sales) {
  const { content, fills_allowed: fills } = prechecked.says;
  const prescribed = new Map();
  for (const line of content.lines) {
    const quantity = quantityE4(line.quantity);
    if (quantity === null) return false;
    prescribed.set(line.line_no, { drug: line.drug_code, quantity: quantity * (fills > 1n ? fills : 1n) });
  }
  const add = (sums, line, quantity) => sums.set(line, (sums.get(line) ?? 0n) + quantity);
  const isDrug = (line) => (prescribed.get(line.line_no)?.drug ?? '') === line.drug_code;
  const soldInAll = new Map();
  for (const { settled, givenBack, out } of sales) {
    const [sold, left] = [new Map(), new Map()];
    for (const line of settled?.says.claim.lines ?? []) {
      add(sold, line.line_no, line.quantity_e4);
      if (line.quantity_e4 <= 0n || !isDrug(line)) return false;
    }
    for (const lot of out?.says.lots ?? []) {
      const quantity = quantityE4(lot.quantity);
      if (quantity === null || !isDrug(lot)) return false;
      add(left, lot.line_no, quantity);
    }
    for (const [line, quantity] of left) if (quantity > (sold.get(line) ?? 0n)) return false;
    // What was paid and given back counts no more, unless its goods are out.
    if ((settled && !givenBack) || out) for (const [line, quantity] of sold) add(soldInAll, line, quantity);
  }
  return [...soldInAll].every(([line, quantity]) => quantity <= (prescribed.get(line)?.quantity ?? 0n));
}

const sumOf = (lines, name) => lines.reduce((sum, line) => sum + line[name], 0n);

function claimHolds({ amounts, lines }) {
  const values = Object.values(amounts).filter((value) => typeof value === 'bigint');
  const linesHold = lines.every((line) => {
    if (line.quantity_e4 * line.price_e6 < 0n) return false;
    // Rounded half up to the fen.
    const computed = (2n * line.quantity_e4 * line.price_e6 + 10n ** 8n) / (2n * 10n ** 8n);
    const parts = line.own_pay_fen + line.over_limit_fen + line.prior_self_pay_fen + line.in_scope_fen;
    return line.amount_fen === computed && computed === parts;
  });
  const a = amounts;
  return (
    linesHold &&
    values.every((value) => value >= 0n) &&
    a.total_fen === a.own_pay_fen + a.over_limit_fen + a.prior_self_pay_fen + a.in_scope_fen &&
    a.total_fen === a.fund_fen + a.institution_fen + a.person_fen &&
    a.person_fen === a.account_fen + a.family_fen + a.cash_fen &&
    a.pooled_fund_fen <= a.fund_fen &&
    a.total_fen === sumOf(lines, 'amount_fen') &&
    a.own_pay_fen === sumOf(lines, 'own_pay_fen') &&
    a.over_limit_fen === sumOf(lines, 'over_limit_fen') &&
    a.prior_self_pay_fen === sumOf(lines, 'prior_self_pay_fen') &&
    a.in_scope_fen === sumOf(lines, 'in_scope_fen')
  );
}

function takesUp(settled, quote) {
  const [claim, quoted] = [settled.says.claim, quote.says.claim];
  return (
    quote.position < settled.position &&
    settled.recordedAt <= quoted.quote_expires_at_ms &&
    claim.quote_id === quoted.quote_id &&
    same(claim.amounts, quoted.amounts) &&
    sameList(claim.lines, quoted.lines)
  );
}

// ---- signed contents: who has to have signed what, and what it must say ----

function* signedContents(chain) {
  const { registered, prechecked, uploaded, rxNo, prescriptionDigest: digest, sales } = chain;
  const content = prechecked.says.content;
  for (const entry of chain.encounter.filter((each) => ['diagnosis.recorded', 'diagnosis.amended'].includes(each.name)))
    yield {
      entry,
      signed: entry.says.statement,
      type: 'DiagnosisStatement',
      subject: entry.says.doctor_code,
      institution: registered ? registered.says.hospital_code : (entry.header.actor.split('/')[1] ?? ''),
      agrees: (said) =>
        said.doctor_code === entry.says.doctor_code &&
        sameList(said.diagnoses, entry.says.diagnoses) &&
        (!registered || said.encounter_id === registered.says.encounter_id),
    };
  const reviewed = chain.rx.find((each) => each.name === 'prescription.hospital_reviewed');
  const signed = chain.rx.find((each) => each.name === 'prescription.signed');
  for (const entry of chain.rx) {
    const { name, says } = entry;
    if (name === 'prescription.hospital_reviewed')
      yield {
        entry,
        signed: says.statement,
        type: 'HospitalReviewStatement',
        subject: says.pharmacist_code,
        institution: content.hospital_code,
        agrees: (said) =>
          said.rx_no === rxNo &&
          said.pharmacist_code === says.pharmacist_code &&
          said.prescription_sha256.equals(digest),
      };
    if (name === 'prescription.uploaded') {
      yield {
        entry,
        signed: says.prescription,
        type: 'PrescriptionDocument',
        subject: content.doctor_code,
        institution: content.hospital_code,
        agrees: (said) =>
          said.rx_no === rxNo &&
          said.rx_trace_code === prechecked.says.rx_trace_code &&
          same(said.prescription, content) &&
          signed !== undefined &&
          signed.says.prescription_sha256.equals(digest),
      };
      yield {
        entry,
        signed: says.seal,
        type: 'UploadSealStatement',
        isSealed: true,
        subject: content.hospital_code,
        institution: content.hospital_code,
        agrees: (said) =>
          said.rx_no === rxNo &&
          reviewed !== undefined &&
          said.hospital_code === content.hospital_code &&
          said.prescription_sha256.equals(digest) &&
          said.review_sha256.equals(sha256(reviewed.says.statement.payload)) &&
          said.file_sha256.equals(uploaded.says.file_sha256),
      };
    }
    const sale = sales.find((each) => each.orderNo === says.order_no);
    if (sale && SALE_CONTENTS.has(name)) yield saleContent(chain, entry, sale);
  }
}

function saleContent(chain, entry, sale) {
  const { type, byPharmacist, agrees } = SALE_CONTENTS.get(entry.name);
  return {
    entry,
    signed: entry.says.statement,
    type,
    isSealed: !byPharmacist,
    subject: byPharmacist ? entry.says.pharmacist_code : sale.pharmacy,
    institution: sale.pharmacy,
    agrees: (said) =>
      said.rx_no === chain.rxNo && said.pharmacy_code === sale.pharmacy && agrees(said, entry, sale, chain),
  };
}

const review = (decision) => ({
  type: 'ReviewStatement',
  byPharmacist: true,
  agrees: (said, { says }, sale, chain) =>
    said.decision === decision &&
    said.pharmacist_code === says.pharmacist_code &&
    said.opinion === says.opinion &&
    said.prescription_sha256.equals(chain.prescriptionDigest),
});
const settlement = (payMode) => ({
  type: 'SettleStatement',
  agrees: (said, { says }) =>
    same(said.amounts, says.claim.amounts, true) &&
    said.quote_id === (payMode === 2n ? says.claim.quote_id : '') &&
    said.pay_mode === payMode,
});
const SALE_CONTENTS = new Map(
  Object.entries({
    'review.passed': review(1n),
    'review.rejected': review(2n),
    'review.returned_to_doctor': review(3n),
    'settlement.committed': settlement(2n),
    'settlement.self_paid': settlement(1n),
    'dispense.outbound': {
      type: 'DispenseStatement',
      agrees: (said, { says }, { settled }) =>
        settled !== undefined &&
        sameList(said.lots, says.lots, true) &&
        // A self-payment has no settlement number of the fund, so its sale may name none.
        ((settled.name === 'settlement.self_paid' && said.settlement_id === '') ||
          said.settlement_id === settled.says.claim.settlement_id),
    },
    'dispense.handed_over': { type: 'HandOverStatement', agrees: () => true },
    'delivery.signed': {
      type: 'SignDeliveryStatement',
      agrees: (said, entry, sale, chain) =>
        chain.rx.some(
          ({ name, says }) =>
            name === 'delivery.requested' && says.order_no === sale.orderNo && says.delivery_no === said.delivery_no,
        ),
    },
  }),
);

function readStatement({ signed, type }) {
  if (signed.payload_type !== `application/vnd.erxhub.v1.${type}`) return null;
  try {
    return decodeMessage(type, signed.payload);
  } catch (error) {
    if (error instanceof Invalid) return null;
    throw error;
  }
}

const DOCUMENT_SIGNING = '1.3.6.1.5.5.7.3.36';

const certificateBlocks = (pem) =>
  pem.match(/-----BEGIN CERTIFICATE-----[^-]+-----END CERTIFICATE-----/g) ?? [];

/** Whether the certificate comes from an authority, is for signing documents alone, and names and outlives the key. */
function certificateBinds(pem, key, authorities) {
  try {
    const [block] = certificateBlocks(pem);
    const certificate = new X509Certificate(block);
    const isIssued = authorities.some(
      (authority) => authority.ca && certificate.checkIssued(authority) && certificate.verify(authority.publicKey),
    );
    const usages = certificate.keyUsage ?? [];
    if (!isIssued || usages.length !== 1 || usages[0] !== DOCUMENT_SIGNING) return false;
    const only = (names) => {
      const lines = certificate.subject.split('\n').map((line) => line.split('='));
      const values = lines.filter(([name]) => names.includes(name)).map(([, ...value]) => value.join('='));
      return values.length === 1 ? values[0] : null;
    };
    const jwk = certificate.publicKey.export({ format: 'jwk' });
    const part = (text) => Buffer.from(text, 'base64url');
    const isP256 = jwk.crv === 'P-256';
    const point = isP256 ? concat(u8(4), part(jwk.x), part(jwk.y)) : jwk.crv === 'Ed25519' ? part(jwk.x) : null;
    return (
      point !== null &&
      key.suite === (isP256 ? 'ES256' : 'EdDSA') &&
      point.equals(key.public_key) &&
      only(['CN']) === key.subject_code &&
      only(['organizationIdentifier', '2.5.4.97']) === key.institution_code &&
      key.valid_from_ms >= BigInt(Date.parse(certificate.validFrom)) &&
      key.valid_until_ms <= BigInt(Date.parse(certificate.validTo))
    );
  } catch {
    return false;
  }
}

// ---- the state machines ----

const START = '–';
const BEFORE_HOLD = '(before the hold)';
const HOLDING = ['HELD', 'REVIEWED', 'PRESETTLED', 'SETTLED'];
const ENDED_ORDER = ['COMPLETED', 'RELEASED', 'CANCELLED', 'TIMED_OUT', 'RETURNED'];
const NO_STATUS = new Set([
  'prescription.rule_warned',
  'prescription.override_recorded',
  'prescription.renewed',
  'prescription.uploaded',
  'authorization.qr_issued',
  'order.routed',
]);

/** Steps the machines of a prescription and its encounter through their events, by the tables. */
class Lifecycle {
  constructor() {
    Object.assign(this, { rx: START, use: START, useBeforeHold: START, orders: [], authorizations: [] });
  }
  follow(prescription, encounter) {
    this.each(prescription, (entry) => this.prescription(entry));
    const visit = { encounter: START };
    this.each(encounter, ({ name }) => {
      if (name !== 'content.erased') advance(visit, 'encounter', name);
    });
  }
  each(entries, step) {
    for (const entry of entries) {
      try {
        step(entry);
      } catch (error) {
        throw asRefused(error, 'LIFECYCLE', `no row of the tables allows ${entry.name} here`, entry);
      }
    }
  }
  prescription({ name, says, recordedAt }) {
    const [area] = name.split('.');
    if (NO_STATUS.has(name)) return;
    if (name === 'content.erased') {
      // The statuses stay, and nothing else.
      Object.assign(this, { lines: new Set(), authorizations: [], useBeforeHold: START });
      for (const order of this.orders) order.downloaded = false;
      return;
    }
    if (name === 'prescription.prechecked') {
      advance(this, 'rx', name);
      ensure(says.content.lines.every((line) => quantityE4(line.quantity) !== null), 'a quantity that is no decimal');
      this.lines = new Set(says.content.lines.map((line) => line.line_no));
    } else if (name === 'prescription.effective') {
      advance(this, 'rx', name);
      advance(this, 'use', name);
    } else if (name === 'prescription.used') {
      advance(this, 'use', says.partial ? 'prescription.used partial' : name);
    } else if (name === 'prescription.downloaded') {
      const order = this.order(says);
      advance(order, 'order', name);
      order.downloaded ||= recordedAt !== 0n;
    } else if (area === 'prescription') {
      advance(this, 'rx', name);
    } else if (area === 'authorization') {
      this.authorization(name, says);
    } else if (name === 'order.created') {
      this.created(says);
    } else {
      this.ofOrder(name, says, this.order(says));
    }
  }
  authorization(name, says) {
    if (name === 'authorization.issued') {
      // Those that have ended are forgotten.
      this.authorizations = this.authorizations.filter((each) => each.authorization === 'ISSUED');
      const held = { mac: says.authorization.secret_mac, authorization: START };
      advance(held, 'authorization', name);
      this.authorizations.push(held);
      return;
    }
    const held = this.authorizations.find((each) => each.mac.equals(says.secret_mac));
    ensure(held, 'there is no such authorization');
    advance(held, 'authorization', name);
  }
  created(says) {
    // It takes the place of what its pharmacy had, never downloaded, and ended.
    this.orders = this.orders.filter(
      (each) => each.pharmacy !== says.pharmacy_code || each.downloaded || !ENDED_ORDER.includes(each.order),
    );
    const machines = { order: START, review: START, settlement: START, dispense: START, delivery: START };
    const order = { no: says.order_no, pharmacy: says.pharmacy_code, downloaded: false, ...machines };
    advance(order, 'order', 'order.created');
    advance(order, 'review', 'order.created');
    this.orders.push(order);
  }
  order(says) {
    const found = this.orders.find((each) => each.no === says.order_no);
    ensure(found, 'there is no such order');
    return found;
  }
  hold(name) {
    const before = this.use;
    advance(this, 'use', name);
    this.useBeforeHold = before;
  }
  ofOrder(name, says, order) {
    const [area] = name.split('.');
    if (name === 'order.held') {
      this.hold(name);
      advance(order, 'order', name);
      advance(order, 'review', name);
    } else if (['order.released', 'order.cancelled', 'order.expired'].includes(name)) {
      const isHolding = HOLDING.includes(order.order);
      advance(order, 'order', name);
      if (isHolding) {
        advance(this, 'use', name);
        if (this.use === BEFORE_HOLD) this.use = this.useBeforeHold;
      }
      advanceIfPossible(order, 'review', name);
    } else if (name === 'order.completed') {
      advance(order, 'order', name);
    } else if (area === 'review') {
      advance(order, 'review', name);
      advanceIfPossible(order, 'order', name);
    } else if (name === 'settlement.quoted' || SETTLED.includes(name)) {
      advance(order, 'order', name);
      advance(order, 'settlement', name);
    } else if (name === 'settlement.reversed' && says.target === REVERSAL_OF_UNDO) {
      advance(order, 'settlement', 'settlement.reversed undo');
      advance(order, 'order', 'settlement.reversed undo');
      this.hold('settlement.reversed undo');
    } else if (area === 'settlement') {
      advance(order, 'settlement', name);
    } else if (area === 'dispense') {
      advance(order, 'dispense', name);
      if (['dispense.outbound', 'dispense.handed_over'].includes(name)) advance(order, 'order', name);
      if (name === 'dispense.outbound')
        ensure(
          says.lots.every((lot) => this.lines?.has(lot.line_no) && quantityE4(lot.quantity) !== null),
          'a lot of no line, or a quantity that is no decimal',
        );
    } else {
      advance(order, 'delivery', name);
      if (name === 'delivery.picked_up') advance(order, 'dispense', name);
      if (!['delivery.signed', 'delivery.cancelled'].includes(name)) advanceIfPossible(order, 'order', name);
    }
  }
}

function advance(thing, machine, event) {
  const next = TRANSITIONS.get(`${machine} ${thing[machine]} ${event}`);
  ensure(next, `${machine}: ${event} in state ${thing[machine]}`);
  if (next !== '=') thing[machine] = next;
}

function advanceIfPossible(thing, machine, event) {
  if (TRANSITIONS.has(`${machine} ${thing[machine]} ${event}`)) advance(thing, machine, event);
}

// Event types (number, name, stream kinds, message), messages (number, kind, * for repeated, name; the kinds are l int64,
// L uint64, i int32, u uint32, e enum, b bool, s string, y bytes, m message) and transitions (= is unchanged): what
// hub/erxhub/core/events.py, protos/erxhub/v1 and docs/lifecycle.md say.
// ---- tables: begin ----
const EVENTS = `
0101 ledger.opened ledger LedgerOpened
0102 hub_key.registered ledger HubKeyRegistered
0103 certificate.revoked ledger CertificateRevoked
0104 catalogue.imported ledger CatalogueImported
0111 institution.registered institution InstitutionRegistered
0112 agreement.signed institution AgreementSigned
0113 agreement.suspended institution AgreementChanged
0114 agreement.resumed institution AgreementChanged
0115 agreement.terminated institution AgreementChanged
0116 practitioner.registered practitioner PractitionerRegistered
0117 practitioner.suspended practitioner PractitionerChanged
0118 practitioner.resumed practitioner PractitionerChanged
0119 practitioner.terminated practitioner PractitionerChanged
011a signing_key.registered institution|practitioner SigningKeyRegistered
011c person.registered person PersonRegistered
011d person.status_changed person PersonStatusChanged
0121 content.erased voucher|account|encounter|prescription ContentErased
0201 person.voucher_activated person VoucherActivated
0202 person.voucher_deactivated person VoucherDeactivated
0203 voucher.issued voucher VoucherIssued
0204 voucher.verified voucher VoucherVerified
0205 voucher.try_counted voucher VoucherTryCounted
0206 voucher.expired voucher VoucherExpired
0207 voucher.revoked voucher VoucherRevoked
0281 account.opened account AccountOpened
0282 account.debited account AccountDebited
0283 account.restored account AccountRestored
0301 encounter.registered encounter EncounterRegistered
0302 encounter.started encounter EncounterStarted
0303 encounter.doctor_attested encounter DoctorAttested
0304 encounter.revisit_proven encounter FollowUpProven
0305 diagnosis.recorded encounter DiagnosisRecorded
0306 diagnosis.amended encounter DiagnosisRecorded
0307 encounter.closed encounter EncounterClosed
0308 encounter.cancelled encounter EncounterCancelled
0401 prescription.prechecked prescription PrescriptionPrechecked
0402 prescription.rule_warned prescription RuleWarned
0403 prescription.override_recorded prescription OverrideRecorded
0404 prescription.hospital_reviewed prescription HospitalReviewed
0405 prescription.signed prescription PrescriptionSigned
0406 prescription.uploaded prescription PrescriptionUploaded
0407 prescription.effective prescription PrescriptionEffective
0408 prescription.undo_requested prescription UndoRequested
0409 prescription.undone prescription PrescriptionUndone
040a prescription.expired prescription PrescriptionExpired
040b prescription.exhausted prescription PrescriptionExhausted
040c prescription.frozen prescription PrescriptionFrozen
040d prescription.unfrozen prescription PrescriptionUnfrozen
040e prescription.renewed prescription PrescriptionRenewed
040f prescription.used prescription PrescriptionUsed
0501 authorization.qr_issued prescription QrIssued
0502 authorization.issued prescription AuthorizationIssued
0503 authorization.consumed prescription AuthorizationConsumed
0504 authorization.expired prescription AuthorizationExpired
0505 authorization.revoked prescription AuthorizationRevoked
0511 order.created prescription OrderCreated
0512 order.routed prescription OrderRouted
0513 order.held prescription OrderHeld
0514 order.released prescription OrderReleased
0515 order.cancelled prescription OrderCancelled
0516 order.expired prescription OrderExpired
0517 order.completed prescription OrderCompleted
0518 prescription.downloaded prescription PrescriptionDownloaded
0521 review.passed prescription ReviewGiven
0522 review.rejected prescription ReviewGiven
0523 review.returned_to_doctor prescription ReviewGiven
0601 settlement.quoted prescription SettlementQuoted
0602 settlement.quote_expired prescription SettlementQuoteExpired
0603 settlement.committed prescription SettlementCommitted
0604 settlement.self_paid prescription SettlementSelfPaid
0605 settlement.undone prescription SettlementUndone
0606 settlement.reversed prescription|institution SettlementReversed
0701 dispense.ready prescription DispenseReady
0702 dispense.picked prescription DispensePicked
0703 dispense.checked prescription DispenseChecked
0704 dispense.outbound prescription DispenseOutbound
0705 dispense.voided prescription DispenseVoided
0706 dispense.handed_over prescription HandedOver
0711 trace_code.sold trace_code TraceCodeSold
0801 delivery.requested prescription DeliveryRequested
0802 delivery.sign_code_renewed prescription SignCodeRenewed
0803 delivery.try_counted prescription DeliveryTryCounted
0804 delivery.assigned prescription DeliveryAssigned
0805 delivery.picked_up prescription DeliveryMoved
0806 delivery.in_transit prescription DeliveryMoved
0807 delivery.arrived prescription DeliveryMoved
0808 delivery.signed prescription DeliverySigned
0809 delivery.refused prescription DeliveryMoved
080a delivery.lost prescription DeliveryMoved
080b delivery.returning prescription DeliveryMoved
080c delivery.returned prescription DeliveryMoved
080d delivery.cancelled prescription DeliveryCancelled
0f01 audit.read access AccessRecorded
0f02 command.refused access CommandRefused
0f03 voucher.rejected access CommandRefused
0f04 prescription.rule_blocked access CommandRefused
0f05 trace_code.duplicate_detected access CommandRefused
0f06 access.budget_exceeded access AccessBudgetExceeded
`;
const MESSAGES = `
AccessBudgetExceeded: 1L count, 2l from_ms, 3l until_ms, 4s caller_kind
AccessRecorded: 1mAccessTarget* targets, 2s caller_kind, 3s case_reason
AccessTarget: 1y stream_key, 2s method, 3s outcome, 4y person_key
AccountDebited: 1l amount_fen, 2l in_scope_fen, 3l fund_fen, 4s settlement_id, 5y rx_key, 6L rx_version, 7i benefit_year
AccountOpened: 1l balance_fen, 2y person_key
AccountRestored: 1l amount_fen, 2l in_scope_fen, 3l fund_fen, 4s settlement_id, 5y rx_key, 6L rx_version, 7i benefit_year
Acknowledgement: 1s code, 2i line_no, 3s reason, 4s doctor_code
Activation: 1s channel_id, 2e level, 3b active
AgreementChanged: 1e kind, 2s case_no
AgreementRecord: 1e kind, 2s agreement_no, 3e status, 4l valid_from_ms, 5l valid_until_ms, 6s* clauses, 7s case_no
AgreementSigned: 1mAgreementRecord agreement
Authorization: 1e status, 2s pharmacy_code, 3y secret_mac, 4l expires_at_ms, 5b is_token, 6y voucher_key
AuthorizationConsumed: 1y secret_mac
AuthorizationExpired: 1y secret_mac
AuthorizationIssued: 1mAuthorization authorization, 2y qr_mac, 3u key_version
AuthorizationRevoked: 1y secret_mac, 2s reason
CatalogEdition: 1e dataset, 2s edition, 3l valid_from_ms, 4y file_sha256, 5i rows, 6s source, 7y rows_sha256
CatalogueImported: 1mCatalogEdition edition
CertificateRevoked: 1y certificate_sha256, 2s key_id, 3s reason, 4l revoked_at_ms
Claim: 1e status, 2s quote_id, 3s settlement_id, 4mClaimAmounts amounts, 5mClaimLine* lines, 6l quoted_at_ms, 7l quote_expires_at_ms, 8l settled_at_ms, 9s settle_request_id, 10s undo_request_id, 11L account_version_after_undo, 12b goods_out
ClaimAmounts: 1l total_fen, 2l own_pay_fen, 3l over_limit_fen, 4l prior_self_pay_fen, 5l in_scope_fen, 6l deductible_fen, 7l pooled_fund_fen, 8l fund_fen, 9l institution_fen, 10l person_fen, 11l account_fen, 12l family_fen, 13l cash_fen
ClaimLine: 1i line_no, 2s drug_code, 3l quantity_e4, 4l price_e6, 5s charge_class, 6l amount_fen, 7l own_pay_fen, 8l over_limit_fen, 9l prior_self_pay_fen, 10l in_scope_fen
CommandRefused: 1s method, 2s code, 3s field, 4y* stream_keys, 5s caller_kind, 6y* person_keys
ContentErased: 1s legal_basis, 2e retention_class, 3l kept_until_ms
DeliveryAssigned: 1s order_no, 2s company, 3s courier_code, 4b cold_chain
DeliveryCancelled: 1s order_no, 2s reason
DeliveryMoved: 1s order_no, 2l at_ms, 3s courier_code, 4i latitude_e6, 5i longitude_e6, 6s note
DeliveryRequested: 1s order_no, 2s delivery_no, 3s address, 4s phone, 5y sign_code_mac, 6u key_version
DeliverySigned: 1s order_no, 2mSigned statement, 3b by_sign_code, 4y voucher_key
DeliveryTryCounted: 1s order_no, 2b locked
Diagnosis: 1s code, 2s name, 3b main, 4s diagnosis_type
DiagnosisRecorded: 1mSigned statement, 2mDiagnosis* diagnoses, 3s doctor_code, 4s reason
DiagnosisStatement: 1s encounter_id, 2s doctor_code, 3mDiagnosis* diagnoses, 4l signed_at_ms
DispenseChecked: 1s order_no, 2s checker_code
DispenseOutbound: 1s order_no, 2s sale_no, 3mSigned statement, 4mDispensedLot* lots
DispensePicked: 1s order_no, 2s dispenser_code
DispenseReady: 1s order_no
DispenseStatement: 1s rx_no, 2s pharmacy_code, 3s settlement_id, 4s reviewer_code, 5s dispenser_code, 6s checker_code, 7mDispensedLot* lots, 8l signed_at_ms
DispenseVoided: 1s order_no, 2s reason
DispensedLot: 1i line_no, 2s drug_code, 3s quantity, 4s lot_no, 5s expires_on, 6s* trace_codes, 7b split_pack, 8b without_code
DoctorAttested: 1y media_sha256, 2l attested_at_ms
EncounterCancelled: 1s reason
EncounterClosed:
EncounterRegistered: 1s encounter_id, 2s hospital_code, 3y person_key, 4s person_no, 5e visit_kind, 6s med_type, 7b first_visit, 8s department, 9y voucher_key, 10s certificate_type
EncounterStarted: 1s doctor_code
FollowUpProven: 1s disease_code, 2s earlier_hospital_code, 3s earlier_visit_on
HandOverStatement: 1s rx_no, 2s pharmacy_code, 3s staff_code, 4l signed_at_ms
HandedOver: 1s order_no, 2mSigned statement, 3y voucher_key
HerbalUsage: 1s route_code, 2s frequency_code, 3s dose_unit, 4s dose, 5i doses, 6s note
HospitalReviewStatement: 1s rx_no, 2s pharmacist_code, 3y prescription_sha256, 4s opinion, 5l signed_at_ms
HospitalReviewed: 1mSigned statement, 2s pharmacist_code
HubKey: 1s purpose, 2s key_id, 3y public_key, 4s hub_id
HubKeyRegistered: 1mHubKey key
InstitutionRegistered: 1mInstitutionState institution
InstitutionState: 1s institution_code, 2s name, 3s area_code, 4s level, 5mLicences licences, 6s social_credit_code, 7mAgreementRecord* agreements, 8mSigningKeyRecord* keys
LedgerOpened: 1s origin, 2s digest, 3u format_version
Licences: 1b internet
OrderCancelled: 1s order_no
OrderCompleted: 1s order_no
OrderCreated: 1s order_no, 2s pharmacy_code, 3e mode, 4b by_patient
OrderExpired: 1s order_no, 2b hold_lapsed
OrderHeld: 1s order_no, 2l hold_until_ms
OrderReleased: 1s order_no, 2s reason
OrderRouted: 1s pharmacy_code
OverrideRecorded: 1mAcknowledgement acknowledgement
PatientFacts: 1i age_years, 2i age_days, 3b newborn, 4i weight_g, 5i gestation_weeks, 6b lactating, 7s* allergies, 8b guardian_present, 9b specialist_present
PersonRegistered: 1mPersonState person
PersonState: 1s person_no, 2s name, 3s certificate_type, 4s id_number, 5e sex, 6s born_on, 7s insured_area_code, 8s insurance_type, 9s person_type, 10e status, 11mActivation* activations, 12s* delegate_person_nos, 13s* chronic_codes, 14y account_key
PersonStatusChanged: 1e status, 2s reason
PractitionerChanged: 1s case_no
PractitionerRegistered: 1mPractitionerState practitioner
PractitionerState: 1s practitioner_code, 2s name, 3e kind, 4e status, 5i practice_years, 6s* institution_codes, 7b dual_channel, 8mSigningKeyRecord* keys, 9s case_no, 10s area_code
Prescription: 1s hospital_rx_no, 2s hospital_code, 3s encounter_id, 4s person_no, 5s rx_type, 6s med_type, 7s doctor_code, 8s department, 9l prescribed_at_ms, 10i valid_days, 11l valid_until_ms, 12mDiagnosis* diagnoses, 13mRxLine* lines, 14mHerbalUsage herbal, 15mPatientFacts patient, 16b long_term, 17s long_term_assessment, 18s supply_reason, 19b repeatable, 20i repeats_max, 21i repeat_interval_days, 22s renews_rx_no, 23s chronic_code, 24mAcknowledgement* acknowledgements, 25e origin
PrescriptionDocument: 1s rx_no, 2s rx_trace_code, 3mPrescription prescription, 4l signed_at_ms
PrescriptionDownloaded: 1s pharmacy_code, 2s order_no
PrescriptionEffective: 1l valid_until_ms
PrescriptionExhausted:
PrescriptionExpired:
PrescriptionFrozen: 1s case_no
PrescriptionPrechecked: 1s rx_no, 2s rx_trace_code, 3mPrescription content, 4y encounter_key, 5y person_key, 6L diagnosis_version, 7i fills_allowed
PrescriptionRenewed: 1s renews_rx_no
PrescriptionSigned: 1s doctor_code, 2y prescription_sha256, 3l signed_at_ms
PrescriptionUndone: 1s doctor_code, 2s reason
PrescriptionUnfrozen: 1s case_no
PrescriptionUploaded: 1mSigned prescription, 2mSigned seal, 3y file_sha256, 4s file_media_type, 5u file_size_bytes
PrescriptionUsed: 1b partial
QrIssued: 1y secret_mac, 2l expires_at_ms, 3u key_version
ReviewGiven: 1s order_no, 2s pharmacist_code, 3s opinion, 4mSigned statement
ReviewStatement: 1s rx_no, 2s pharmacy_code, 3s pharmacist_code, 4e decision, 5s opinion, 6y prescription_sha256, 7l signed_at_ms
RuleWarned: 1mWarning* warnings
RxLine: 1i line_no, 2s item_type, 3s drug_code, 4s generic_name, 5s strength, 6s dose, 7s dose_unit, 8s units_per_dose, 9s frequency_code, 10s route_code, 11i supply_days, 12s quantity, 13s quantity_unit, 14s unit_price, 15l amount_fen, 16s approval_flag, 17b hospital_preparation, 18i max_per_day, 19s usage_note
SaleLine: 1i line_no, 2s drug_code, 3s quantity, 4s unit_price
SettleStatement: 1s rx_no, 2s pharmacy_code, 3s quote_id, 4e pay_mode, 5mClaimAmounts amounts, 6mSaleLine* lines, 7l signed_at_ms
SettlementCommitted: 1s order_no, 2mClaim claim, 3mSigned statement, 4y account_key, 5y voucher_key
SettlementQuoteExpired: 1s order_no, 2s quote_id
SettlementQuoted: 1s order_no, 2mClaim claim, 3l hold_until_ms, 4y voucher_key
SettlementReversed: 1s order_no, 2s settlement_id, 3e target, 4s original_request_id
SettlementSelfPaid: 1s order_no, 2mClaim claim, 3mSigned statement
SettlementUndone: 1s order_no, 2s settlement_id, 3s reason, 4s undo_request_id, 5L account_version
SignCodeRenewed: 1s order_no, 2y sign_code_mac, 3u key_version
SignDeliveryStatement: 1s rx_no, 2s pharmacy_code, 3s delivery_no, 4l signed_at_ms
Signature: 1s key_id, 2y signature
Signed: 1s payload_type, 2y payload, 3mSignature* signatures
SigningKeyRecord: 1s key_id, 2s subject_code, 3s institution_code, 4s suite, 5y public_key, 6l valid_from_ms, 7l valid_until_ms, 8b revoked
SigningKeyRegistered: 1mSigningKeyRecord key, 2y certificate_pem
TraceCodeSold: 1s drug_code, 2s pharmacy_code, 3y rx_key, 4L rx_version
UndoRequested: 1s doctor_code, 2s reason
UploadSealStatement: 1s rx_no, 2s hospital_code, 3y prescription_sha256, 4y review_sha256, 5y file_sha256, 6l signed_at_ms
VoucherActivated: 1s channel_id, 2e level
VoucherDeactivated: 1s channel_id
VoucherExpired:
VoucherIssued: 1y person_key, 2y delegate_key, 3s channel_id, 4s business_type, 5l expires_at_ms, 6y code_mac, 7u key_version
VoucherRevoked: 1s reason
VoucherTryCounted: 1s institution_code, 2s refusal_code
VoucherVerified: 6b online, 1s institution_code, 2y ref_mac, 3l ref_expires_at_ms, 4u key_version, 5s operator_id
Warning: 1s code, 2i line_no, 3s message_en, 4s message_zh
`;
const ROWS = `
encounter –: encounter.registered -> REGISTERED
encounter REGISTERED: encounter.started -> IN_CONSULT
encounter IN_CONSULT: encounter.doctor_attested -> =
encounter IN_CONSULT: encounter.revisit_proven -> =
encounter IN_CONSULT: diagnosis.recorded -> DIAGNOSED
encounter DIAGNOSED: diagnosis.amended -> =
encounter DIAGNOSED: encounter.closed -> CLOSED
encounter REGISTERED|IN_CONSULT|DIAGNOSED: encounter.cancelled -> CANCELLED
rx –: prescription.prechecked -> PRECHECKED
rx PRECHECKED: prescription.hospital_reviewed -> =
rx PRECHECKED: prescription.signed -> SIGNED
rx SIGNED: prescription.effective -> EFFECTIVE
rx PRECHECKED|SIGNED|EFFECTIVE: prescription.undone -> UNDONE
rx EFFECTIVE: prescription.undo_requested -> =
rx EFFECTIVE: prescription.undone -> UNDONE
rx PRECHECKED|SIGNED|EFFECTIVE|FROZEN: prescription.expired -> EXPIRED
rx EFFECTIVE: prescription.exhausted -> EXHAUSTED
rx EFFECTIVE: prescription.frozen -> FROZEN
rx FROZEN: prescription.unfrozen -> EFFECTIVE
review –: order.created -> NONE
review NONE: order.held -> PENDING
review PENDING: review.passed -> PASSED
review PENDING: review.rejected -> REJECTED
review PENDING: review.returned_to_doctor -> RETURNED_TO_DOCTOR
review PENDING: order.released -> NONE
review PENDING: order.cancelled -> NONE
review PENDING: order.expired -> NONE
use –: prescription.effective -> UNUSED
use UNUSED|PARTLY_USED: order.held -> HELD
use HELD: order.released -> (before the hold)
use HELD: order.cancelled -> (before the hold)
use HELD: order.expired -> (before the hold)
use HELD: prescription.used partial -> PARTLY_USED
use HELD: prescription.used -> USED
use UNUSED|PARTLY_USED: settlement.reversed undo -> HELD
authorization –: authorization.issued -> ISSUED
authorization ISSUED: authorization.revoked -> REVOKED
authorization ISSUED: authorization.consumed -> CONSUMED
authorization ISSUED: authorization.expired -> EXPIRED
authorization ISSUED: authorization.revoked -> REVOKED
order –: order.created -> CREATED
order –: order.created -> CREATED
order CREATED: order.held -> HELD
order HELD|REVIEWED|PRESETTLED: prescription.downloaded -> =
order HELD: review.passed -> REVIEWED
order HELD: order.released -> RELEASED
order REVIEWED: settlement.quoted -> PRESETTLED
order PRESETTLED: settlement.quoted -> =
order PRESETTLED: settlement.committed -> SETTLED
order REVIEWED|PRESETTLED: settlement.self_paid -> SETTLED
order SETTLED: dispense.outbound -> DISPENSED
order SETTLED: order.released -> RELEASED
order RELEASED: settlement.reversed undo -> SETTLED
order DISPENSED: dispense.handed_over -> COMPLETED
order DISPENSED: delivery.picked_up -> DELIVERING
order DELIVERING: order.completed -> COMPLETED
order DELIVERING: delivery.refused -> =
order DELIVERING: delivery.lost -> =
order CREATED|HELD|REVIEWED|PRESETTLED: order.released -> RELEASED
order CREATED|HELD|REVIEWED|PRESETTLED: order.cancelled -> CANCELLED
order CREATED|HELD|REVIEWED|PRESETTLED: order.expired -> TIMED_OUT
settlement –|PRE|LAPSED: settlement.quoted -> PRE
settlement PRE: settlement.quote_expired -> LAPSED
settlement PRE: settlement.committed -> SETTLED
settlement –|PRE|LAPSED: settlement.self_paid -> SELF_PAID
settlement SETTLED|SELF_PAID: settlement.undone -> UNDONE
settlement SETTLED: settlement.reversed -> REVERSED
settlement UNDONE: settlement.reversed undo -> SETTLED
dispense –|VOIDED: dispense.ready -> READY
dispense READY: dispense.picked -> PICKED
dispense PICKED: dispense.checked -> CHECKED
dispense CHECKED: dispense.outbound -> OUT
dispense OUT: dispense.handed_over -> HANDED_OVER
dispense OUT: delivery.picked_up -> SHIPPED
dispense READY|PICKED|CHECKED: dispense.voided -> VOIDED
delivery –: delivery.requested -> REQUESTED
delivery REQUESTED|ASSIGNED|PICKED_UP|IN_TRANSIT|ARRIVED: delivery.sign_code_renewed -> =
delivery REQUESTED: delivery.assigned -> ASSIGNED
delivery ASSIGNED: delivery.picked_up -> PICKED_UP
delivery PICKED_UP: delivery.in_transit -> IN_TRANSIT
delivery IN_TRANSIT: delivery.arrived -> ARRIVED
delivery ARRIVED: delivery.signed -> SIGNED
delivery ARRIVED: delivery.try_counted -> =
delivery ARRIVED|IN_TRANSIT: delivery.refused -> REFUSED
delivery PICKED_UP|IN_TRANSIT|ARRIVED: delivery.lost -> LOST
delivery REFUSED: delivery.returning -> RETURNING
delivery RETURNING: delivery.returned -> RETURNED
delivery REQUESTED|ASSIGNED: delivery.cancelled -> CANCELLED
`;
const RETENTION_CLASSES = [0n, 1n, 2n, 3n, 4n, 5n, 6n];
// ---- tables: end ----

const linesOf = (table) => table.trim().split('\n');
const EVENT_TYPES = new Map(
  linesOf(EVENTS).map((line) => {
    const [number, name, kinds, message] = line.split(' ');
    return [parseInt(number, 16), { name, kinds: kinds.split('|'), message }];
  }),
);
const MESSAGE_FIELDS = new Map(
  linesOf(MESSAGES).map((line) => {
    const [message, fields] = [line.split(':', 1)[0], line.slice(line.indexOf(':') + 1).trim()];
    return [message, new Map(fields ? fields.split(', ').map(fieldOf) : [])];
  }),
);
const TRANSITIONS = new Map(
  linesOf(ROWS).flatMap((line) => {
    const [, machine, states, event, next] = /^(\S+) (\S+): (.+) -> (.+)$/.exec(line);
    return states.split('|').map((state) => [`${machine} ${state} ${event}`, next]);
  }),
);

function fieldOf(text) {
  const [, number, kind, message, many, name] = /^(\d+)([a-zA-Z])(\w*)(\*?) (\w+)$/.exec(text);
  return [Number(number), { kind, message: message || null, many: many !== '', name }];
}

// ---- the command ----

const USAGE = `node verify.mjs BUNDLE --log-key VKEY [--policy FILE] [--ca FILE] [--about 'KIND NAME']
node verify.mjs --batch --log-key VKEY [--policy FILE] [--ca FILE]

  --log-key   the log's public key, name+id+base64; may be repeated, and left out if the policy names the log
  --policy    which witnesses must have cosigned; without it the checkpoint counts as unwitnessed
  --ca        the trust domain's root (PEM): the signers' certificates are checked too
  --about     what the bundle has to be about: prescription NUMBER, trace_code CODE or stream KEY
  --batch     lines {"bundle": base64} on standard input, one verdict a line on standard output
`;

function readArguments(given) {
  const options = { bundle: null, batch: false, asked: null, trust: { logKeys: [], policy: null, ca: null } };
  const { trust } = options;
  for (let at = 0; at < given.length; at++) {
    const word = given[at];
    const value = () => {
      ensure(at + 1 < given.length, `${word} needs a value`);
      return given[++at];
    };
    if (word === '--batch') options.batch = true;
    else if (word === '--log-key') trust.logKeys.push(readVkey(value().trim(), [LOG]));
    else if (word === '--policy') trust.policy = readPolicy(readFileSync(value()));
    else if (word === '--ca') trust.ca = readAuthorities(readFileSync(value(), 'utf8'));
    else if (word === '--about') options.asked = readAsked(value());
    else {
      ensure(!word.startsWith('--') && options.bundle === null, `${word} is not understood`);
      options.bundle = word;
    }
  }
  ensure(options.batch !== (options.bundle !== null), 'one bundle, or --batch');
  ensure(trust.logKeys.length || trust.policy?.logs.length, 'no key of a log: give --log-key, or a policy that names one');
  return options;
}

function readAuthorities(pem) {
  const found = certificateBlocks(pem);
  ensure(found.length, 'no certificate in the file of --ca');
  return found.map((each) => new X509Certificate(each));
}

function readAsked(text) {
  const [kind, name] = [text.split(' ', 1)[0], text.slice(text.indexOf(' ') + 1)];
  subjectKey(kind, name);
  return { kind, name };
}

const placeText = ({ kind, key, version }) => `${kind || 'stream'}/${key.toString('hex')} version ${version}`;

/** A line without what a hostile file could steer a terminal by. */
const say = (line) => console.log(line.replace(/[\p{C}\u2028\u2029]/gu, (each) => `\\u{${each.codePointAt(0).toString(16)}}`));

function report({ held, form, checks, reason, place, words }, trust) {
  checks.forEach((check, at) => say(`${at + 1}. ${check}`));
  if (held) {
    if (!trust.ca && form === 'chain') say("(no --ca was given: the signers' certificates were not looked at)");
    say('VERIFIED');
    return;
  }
  say(`${checks.length + 1}. FAILED: ${words}`);
  if (place.key.length) say(`   at ${placeText(place)}`);
  say(`REFUSED ${reason}`);
}

async function batch(trust, asked) {
  for await (const line of createInterface({ input: process.stdin })) {
    const { bundle } = JSON.parse(line);
    const { held, checks, reason, place, words } = verifyBundle(Buffer.from(bundle, 'base64'), trust, asked);
    const at = place ? { kind: place.kind, key: place.key.toString('hex'), version: Number(place.version) } : null;
    process.stdout.write(`${JSON.stringify({ held, reason, at, words, checks: checks.length })}\n`);
  }
}

async function main() {
  let options;
  try {
    options = readArguments(process.argv.slice(2));
  } catch (error) {
    process.stderr.write(`${error.message}\n\n${USAGE}`);
    process.exitCode = 2;
    return;
  }
  const { trust, asked } = options;
  if (options.batch) {
    await batch(trust, asked);
    return;
  }
  let data;
  try {
    data = readFileSync(options.bundle);
  } catch (error) {
    process.stderr.write(`${error.message}\n`);
    process.exitCode = 2;
    return;
  }
  const verdict = verifyBundle(data, trust, asked);
  report(verdict, trust);
  process.exitCode = verdict.held ? 0 : 1;
}

if (process.argv[1] && realpathSync(process.argv[1]) === fileURLToPath(import.meta.url)) await main();
